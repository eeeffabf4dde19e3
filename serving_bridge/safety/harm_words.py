"""The vocabulary of the harm rules: groups of words, as alternatives of patterns over folded text in lower case."""

from __future__ import annotations

import re

_STAR = re.compile(r"(?<=[a-z\]-])(?<!\\w)\*")


def _any(words: str) -> str:
    """Alternatives from words in lines; an ending * stands for more letters."""
    parts = [_STAR.sub(r"\\w*", part.strip()) for part in words.replace("\n", "|").split("|")]
    return f"(?:{'|'.join(part for part in parts if part)})"


def gap(most: int) -> str:
    """At most so many words of the same sentence between two others."""
    return rf"(?:[^\w.!?\n]+\w+){{0,{most}}}[^\w.!?\n]+"


#: Somebody wants something done, or told how.
ASK = _any(r"""
    how (?:do|can|could|would|should|might|may|to|one|i|you|we|does one|is it possible)|how-to|ways? (?:of|to|i
    that)|way (?:of|to|for)
    methods? (?:for|of|to|i|by)|steps? (?:to|for|should|by|in|i)|step-by-step|guid*|tutorial*|instruct*|manual*
    lesson*|recipe*|blueprint*
    teach*|explain*|show*|describ*|give|giving|provid*|writ*|creat*|develop*|design*|mak(?:e|ing)|build*|generat*
    produc*|outlin*
    plan*|tip|tips|trick|tricks|advice|advise|where (?:can|could|do|should|would|might) (?:i|we|you|one)
    help* (?:me|us|someone|people|users|others)
    help|tell (?:me|us)|can (?:you|i|we)|could (?:you|i|we)|should (?:i|we)|i want|i need|i would like|i'd like
    i wish|i am going to|i'm going to
    i plan|let's|want to|trying to|strateg*|script*|program*|code|app|application|tool|software|algorithm|machine
    device|compos*|publish*
    post|tweet|shar(?:e|ing)|offer*|suggest*|devis*|draft*|educat*|demonstrat*|conduct*|launch*|perform*
    execut(?:e|ing)|encourag*|persuad*
    convinc*|list|detail*|procedure*|formulat*|compil*|construct*|engineer*|invent*|come up with|propos*|train*
    assist*|please|what (?:can|should|could) (?:i|we)
    what(?:'s| is| are)?(?: (?:the|a|an|some|good|great|best|most|easiest|simplest|quickest|fastest|safest
    effective|perfect|ideal))+
    best|easiest|effective|release|infiltrat*|exploit|steal|hack|disrupt|sabotage|promot*|facilitat*|implement*
    organi[sz]*|recommend*|discuss*
""")
PERSON = _any(r"""
    someone*|somebody*|some one|anyone|anybody|person*|people*|peoples|human*|man|men|woman|women|wife|husband
    spouse|girlfriend*|boyfriend*|partner*
    ex|ex-wife|ex-husband|boss*|neighbo*|kid|kids|child|children*|toddler*|baby|babies|infant*|teen*|girl|girls
    boy|boys|student*|classmate*
    teacher*|cop|cops|police*|officer*|politician*|president*|mayor*|senator*|minister*|governor*|judge*
    celebrit*|grandparent*|grandm*|grandf*
    granny|mother*|mom|father*|dad|brother*|sister*|sibling*|friend*|colleague*|co-?worker*|employee*|stranger*
    roommate*|family|families|parents?
    enem(?:y|ies)|guy|guys|him|them|myself|yourself|himself|herself|themselves|immigrant*|gays?|jews?|muslims?
    refugees?|victim*|humanity|mankind|everyone
    others|pedestrian*|civilian*|passenger*|crowd|hostage*|protest(?:er|or)s?|journalist*|user|users|customer*
    nurse*|doctor*|animal|animals|cat|dog|pet|pets
    rival*|witness*|homeless|elderly|minority|minorities|group|groups|individual*|opponent*|ceo|landlord*|patient*
""")
GROUP = _any(r"""
    wom[ae]n|girls?|females?|blacks|black people|african[- ]americans?|africans?|jews?|jewish(?: people)?
    muslims?|islam|hindus?|christians?|catholics?|buddhists?
    sikhs?|atheists?|gays?|gay people|lesbians?|bisexuals?|homosexuals?|lgbtq?\w*|queer people
    trans(?:gender)?(?: \w+)?|immigrants?|migrants?|refugees?|foreigners?
    asians?|asian people|chinese|indians?|arabs?|latin[oax]s?|hispanics?|mexicans?|roma(?: people)?|gyps(?:y|ies)
    indigenous(?: people)?|native americans?|aborigin\w*
    disabled people|people with disabilities|handicapped|autistic people|elderly(?: people)?|old people
    homeless(?: people)?|poor people|fat people|obese people
    non-?binary people|asexual people|divorced people|people on benefits|minorit(?:y|ies)|ethnic (?:group
    minorit)\w*|people of colou?r|white people|deaf people|blind people
    pregnant women|single mothers?|ukrainians?|russians?|poles|turks|kurds|palestinians?|israelis?|nigerians?
    vegans?|(?:certain|specific|particular|marginali[sz]ed|minority|protected|religious|racial) groups?
""")
KILL = _any(r"""
    kill*|murder*|assassinat*|slay*|poison*|strangl*|stab|stabbing|shoot|shooting|snip(?:e|ing)|execut(?:e|ing)
    eliminat*|exterminat*|eradicat*|annihilat*|behead*
    decapitat*|drown*|suffocat*|smother*|chok(?:e|ing)|throttl*|maim*|tortur*|mutilat*|dismember*|gut|gutting
    chop(?:ping)? up|beat(?:ing)? up|beat|beating|hurt|hurting
    harm|harming|injur(?:e|ing)|attack|attacking|assault|assaulting|punch*|smash*|slash*|kidnap*|abduct*|rap(?:e
    ing)|molest*|blow(?:ing)? up|bomb|bombing|gun(?:ning)? down
    run(?:ning)? over|hunt(?:ing)? down|do(?:ing)? away with|get(?:ting)? rid of|take out|finish off|terminat(?:e
    ing)|euthani[sz]e|wip(?:e|ing) out|massacr*|lynch*
    shatter*|kick|kicking|slap|slapping|skewer*|impal*|crucif*|bludgeon*|bash|bashing|cripple|paralyz*|blind
    castrat*|starv(?:e|ing)
    liquidat*|overpower*|captur*|wound|wounding|obliterat*|decimat*|electrocut*|knock(?:ing)? out|silenc(?:e|ing)
    terrori[sz](?:e|ing)|sacrific*
    burn(?:ing)? (?:down|alive)|butcher|hang|crack(?:ing)? open|crush|disfigur*|drug|drugging|sedat(?:e|ing)
    imprison*|traffick*|enslav*|ambush*|push|pushing|stalk*|electrocut*
""")
WEAPON = _any(r"""
    bombs?|pipe ?bombs?|car ?bombs?|bombing|explosives?|explosive (?:device|material|charge)s?|ieds?|grenades?
    molotov*|napalm|semtex|tatp|rdx|petn|nitroglycerin*|c-?4 explosive*|thermite
    detonators?|ghost guns?|silencers?|suppressors?|machine guns?|automatic (?:weapon|rifle)s?|guns?|firearms?
    rifles?|pistols?|shotguns?|ammunition|nerve (?:gas|agent)s?|sarin|vx|vx gas|novichok|ricin|anthrax
    botulinum*|mustard gas|chlorine gas|phosgene|toxic gas|poison gas|poison*|cyanide|biological weapons?
    bio-?weapons?|biological agents?|chemical weapons?|nuclear (?:bomb|weapon|device|warhead)s?|dirty bombs?
    land ?mines?|weapons? of mass destruction|weapons?|missiles?|flamethrowers?|tasers?|brass knuckles|smallpox
    ebola|pathogens?|letter bombs?|enriched uranium|plutonium|uranium
""")
DRUG = _any(r"""
    meth|methamphetamines?|crystal meth|amphetamines?|cocaine|crack cocaine|heroin|fentanyl|carfentanil|lsd|mdma
    ecstasy|ketamine|pcp|dmt|ghb|opium|opioids?|oxycontin|oxycodone|psilocybin|magic mushrooms
    marijuana|marihuana|weed|cannabis|hashish|bath salts|date[- ]rape drugs?|rohypnol|roofies?|(?:illegal|illicit
    hard|recreational|dangerous|controlled|designer|banned|synthetic|street) (?:drug|substance|steroid|narcotic)s?
    drug (?:use|abuse)|narcotics|drugs|anabolic steroids|steroids|fake (?:medicine|medication|pills|drugs)
    counterfeit (?:medicine
    drugs|pills|medication)s?
""")
MAKE = _any(r"""
    mak(?:e|ing)|build|building|construct*|creat(?:e|ing)|assembl*|manufactur*|synthesi[sz]*|produc(?:e|ing)|cook
    cooking|buy|buying|acquir*|obtain*|get|getting|smuggl*|3d[- ]?print*|print|printing
    convert*|modify*|detonat*|plant|planting|deploy*|weaponi[sz]*|enrich*|design*|develop*|grow|growing|cultivat*
    sell|selling|purchas*|distribut*|traffick*|deal|dealing|hid(?:e|ing)|extract*
    brew*|mix|mixing|import*|ship|shipping|access and use|use a|find|source|release|releasing|spread*|mail
    disguis*|conceal*|carry|sneak*|bring*|explod*|set(?:ting)? off|throw|throwing|tamper*|steal|stealing
""")
SPREAD = _any(r"""
    promot*|encourag*|incit*|spread*|glorif*|advocat*|justif*|support*|endors*|prais*|celebrat*|normali[sz]*
    contain*|instigat*|provok*|foment*|trivializ*|romanticiz*|romanticis*|rationali[sz]*
    argu*|defend*|den(?:y|ies|ying)|claim*|express*|express(?:es|ing)|filled with|full of|suggest*|persuad*
    convinc*|target*|recruit*|radicali[sz]*|host*|post*|publish*|disseminat*|distribut*|creat*|writ*|generat*
    mak(?:e|ing)|produc*|design*|develop*|launch*|share|sharing|orchestrat*|run
""")
HATE = _any(r"""
    racis*|hate|hatred|hate[- ]?speech|hateful|discriminat*|sexis*|anti-?semit*|misogyn*|homophob*|transphob*
    xenophob*|islamophob*|bigot*|white suprem*|white power|supremac*|nazi*|neo-?nazi*|nazism|genocid*
    ethnic cleansing
    violence against|violence toward*|violence on|holocaust (?:denial|never)|holocaust didn't|eugenics
    segregation|racial (?:superiority|inferiority|slur)s?|slurs?|ethnic hatred|dehumani[sz]*|gender inequality
    sexual harassment
    domestic violence|violence|derogatory|prejudice*|stereotyp*|inferior*|child labou?r|slavery
""")
LIES = _any(r"""
    fake news|misinform*|disinform*|propaganda|conspiracy theor*|hoax*|false (?:information|news|rumou?r|claim
    narrative|accusation)s?|fake (?:article|story|stories|news|testimonial|review|reviews|endorsement|evidence
    quote|study|research|scientific)\w*
    deepfakes?|deep fakes?|rumou?rs|fabricated (?:news|evidence|stor\w+|claim\w*|quote\w*)
    misleading (?:information|news|article|claim\w*|advert\w*)|pseudo-?science|anti-?vax*|vaccines? (?:cause
    contain|are)
    flat earth|election was (?:stolen|rigged)|5g causes|climate change is a hoax|moon landing was
    9/11 was an inside|false flag|fake medical|false medical|unproven cure|miracle cure
""")
SELF_HARM = _any(r"""
    suicide|suicidal|kill (?:myself|yourself|themselves|himself|herself|themself)|end (?:my|your
    their) (?:own )?life|end it all|hang myself|cut(?:ting)? myself|hurt myself|harm myself|self-?harm*
    self harm*|self-?injur*|self-?mutilat*|overdose on|starv(?:e|ing) (?:myself|yourself|themselves)|slit* (?:my
    your) wrists?
    anorexi*|bulimi*|pro-?ana|thinspo*|eating disorders?|die painlessly|painless(?:ly)? (?:death|die|way to die)
    sever (?:my|your)[\w ]{0,20} artery|pierce (?:my|your)(?: own)? artery|jump off|die like|asphyxiat* myself
    extreme (?:diet|fasting|weight loss)|drown myself|shoot myself|poison myself|purging
""")
ATTACK = _any(r"""
    malware|ransomware|spyware|adware|keyloggers?|key loggers?|root ?kits?|bot ?nets?|trojans?|computer (?:virus
    worm)\w*|viruses|virus that|worm that|ddos|denial[- ]of[- ]service|phishing|spear[- ]?phish*|zero[- ]days?
    sql injections?|cyber[- ]?attacks?|cyber[- ]?terror*
    cyber ?weapons?|back ?doors?|exploit kits?|credential stuffing|brute[- ]force*|man[- ]in[- ]the[- ]middle
    session hijack*|sim[- ]swap*|card skimm*|password cracker*|logic bombs?|fork bombs?|crypto ?jack*|drainers?
    stealer|rat that|remote access trojan|social engineering attack*|xss attack*
""")
FRAUD = _any(r"""
    fraud|fraudulent*|scams?|scamming|ponzi|pyramid schemes?|money[- ]launder*|launder* (?:money|cash|funds|dirty
    proceeds|illicit)|counterfeit*|forg(?:e|ing|ery|ed) (?:(?:a|an|the) )?(?:signature|document|check|cheque
    passport|id|certificate|prescription|will|letter)\w*
    fake (?:id|ids|identity|identities|passports?|documents?|reviews?|invoices?|checks?|diplomas?|degrees?
    charit\w+|money|currency|certificates?|prescriptions?|driver'?s? licen\w+|websites?|accounts?|profiles?
    followers|bank\w*|vaccine\w*|receipts?|dating)
    identity theft|id theft|steal* (?:\w+ )?identit*|credit card (?:fraud|skimm\w*|theft|number generator
    information|numbers|details|data)|stolen credit cards?|insider trading|tax (?:fraud|evasion)
    evad* (?:paying )?tax*|embezzl*|brib*|blackmail*|extort*|ransom
    (?:mail|wire|insurance|bank|check|welfare|medicare|securities|voter|election|mortgage|benefit|healthcare
    immigration|credit|charity|bank account|loan|marriage) (?:fraud|scam)|defraud*|swindl*|price[- ]fix*
    pump[- ]and[- ]dump|market manipulation|shell compan*|cheat* (?:on )?(?:an? )?(?:exam|test|tax|taxes)\w*
""")
CRIME = _any(r"""
    crimes?|violent crimes?|murder|homicide|manslaughter|arson|robber*|burglar*|rape|genocide|massacre*|terror*
    terrorist attacks?|assault|vandalism|perjury|theft|larceny|shoplift*|treason|kidnapping|carjack*|piracy
    hit and run|espionage|war crimes?|human trafficking|torture|mass (?:shooting|murder)s?|school shooting*
    stalking|voter fraud|electoral fraud|bank heist|hate crimes?|cannibalism|illegal (?:activit\w+|act\w*)
    criminal (?:activit\w+|acts?)|identity theft|prostitution|jaywalking|atrocities|genital mutilation
""")
RECORD = _any(r"""
    address|home address|addresses|medical (?:records?|history|data)|health records?|passwords?|passcode|pin
    pin code|location|whereabouts|phone number|cell number|social security (?:number|details)|ssn
    browsing history|search history|emails?|private (?:email|messages?|photos?|chats?|data|information
    conversations?)|text messages|messages|login|login details|log-in|passport|passport number|tax (?:records?
    returns?)
    criminal (?:history|record)|sexual orientation|sexuality|religious beliefs?|religion|political (?:affiliation
    views?|beliefs?)|bank (?:account|details|statement)\w*|credit card (?:details|number|information)
    credit (?:score|report)|salary|immigration status|marital status|mental health\w*|internet history
    call (?:log|history)|personal (?:data|information|details)|birth certificate|driver'?s? licen\w+
    employment history|union member\w*|date of birth|sexual history|genetic\w*|dna|diagnos\w*
    financial (?:records?|information|details)
""")
#: A word that turns what follows into its opposite, or into a matter of learning.
SAFE = re.compile(
    _any(r"""
    prevent\w*|protect(?:ed|ing|s)?\b|protection (?:from|against|for)|defend (?:against|myself|yourself|ourselves
    against)|detect(?:ing)?\b|avoid (?:being
    becoming|falling|getting (?:scammed|hacked|poisoned|mugged|robbed|attacked))|recover\w* from
    report(?:ing)? (?:a|an|someone|suspected|the)
    stop (?:someone|people|my|a|an|the|kids|bullying|others)|combat\w*|fight(?:ing)? (?:against|back)
    against (?:bullying|hate|racism|discrimination|violence|fraud|phishing)|awareness|dangers? of|risks? of
    consequences? of|effects? of|impact of|laws? (?:against|on|about|regarding)|penalt\w+|histor(?:y|ical|ian)\w*
    definition|meaning|means|mean|difference between|statistics|victims? (?:of|recover|support)|surviv\w+
    support(?:ing)? (?:someone|people|a friend|victims)|signs of|symptoms|treat(?:ment|ing)?\b
    legal(?:ly)? (?:definition|to|status|consequences)|illegal\?|is it (?:legal|illegal)|documentar\w+
    ethic\w+ (?:of|implications)|anti-(?:bullying|racis\w+|fraud|phishing|money|terror\w*|virus|hate
    discrimination|malware)
    overcom\w+|cope|coping|quit|quitting|addict\w+|rehab\w*
    identify(?:ing)?|recogni[sz]\w+|spot(?:ting)?\b|mitigat\w+|remov(?:e|ing)|respond to|investigat\w+
    prosecut\w+|reduc(?:e|ing)|end(?:ing)? (?:racism|violence|discrimination|hate)|counter(?:ing)? (?:hate
    terror\w*|extremis\w*|misinformation|disinformation|propaganda)|raise awareness|discourag\w+|debunk\w*
    fact-check\w*|hotline|helpline|secure (?:my|our|against)
""")
)
#: What takes the safe word back: who avoids being found has something to hide.
EVADE = re.compile(
    _any(r"""
    without (?:getting|being) (?:caught|detected|noticed|traced|seen)|without (?:anyone|them|leaving
    their (?:knowledge|consent))|undetect\w*|untrace\w*|avoid(?:ing)? (?:detection|getting caught|being caught
    the police|law enforcement|capture|arrest|security|suspicion)|evad(?:e|ing)|get(?:ting)? away with
    prevent\w* (?:detection|being caught|them from (?:finding|noticing|leaving|reporting))
""")
)
#: Asking for a cause is learning, unless the question itself takes sides against a group.
CURIOUS = re.compile(r"\bwhy (?:is|are|was|were|do|does|did|would)\b")
