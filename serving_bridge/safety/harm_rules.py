"""The harm rules: for each category, what somebody wants and what it is about, in words of one sentence."""

from __future__ import annotations

from collections.abc import Mapping

from serving_bridge.safety.harm_words import (
    ASK,
    ATTACK,
    CRIME,
    DRUG,
    FRAUD,
    GROUP,
    HATE,
    KILL,
    LIES,
    MAKE,
    PERSON,
    RECORD,
    SELF_HARM,
    SPREAD,
    WEAPON,
    gap,
)

_MINOR = (
    r"(?:child(?:ren)?|minors?|underage\w*|preteens?|toddlers?|infants?|kids?|school ?girls?|school ?boys?|"
    r"lolis?|teenage(?:r|d)?s?"
    r"|(?:[1-9]|1[0-7])[- ]?(?:years?[- ]old|yo)\b|little (?:girl|boy)s?|young (?:girl|boy)s?)"
)
_SEX = (
    r"(?:sex\w*|porn\w*|nudes?|nude|erotic\w*|naked|groom(?:ing)?|seduc\w+|molest\w*|fondl\w+|intimate (?:photo|"
    r"picture)s?|explicit)"
)
_SYSTEM = (
    r"(?:network|database|system|computer|server|account|website|site|phone|device|email|e-mail|wi-?fi|router|"
    r"webcam|camera|bank|"
    r"institution|government|agency|corporat\w+|compan\w+|hospital|school|car|cars|drone|drones|satellite|grid|"
    r"infrastructure|"
    r"atm|machine|profile|facebook|instagram|twitter|snapchat|whatsapp|gmail|icloud|software|app|users?|"
    r"someone\w*|people|minds?|"
    r"laptop|election\w*|voting|traffic|plane|airport|nuclear|power|water|medical|pacemaker|smart|iot|"
    r"credit card|password)s?"
)
_THEIRS = (
    r"(?:someone(?: else)?(?:'s)?|somebody(?:'s)?|other people(?:'?s)?|another person(?:'s)?|a stranger(?:'s)?|"
    r"celebrit(?:y|ies)(?:'s?)?|"
    r"(?:my|our|his|her|their)(?: \w+)? (?:ex|wife|husband|girlfriend|boyfriend|partner|neighbou?r|boss|"
    r"co-?worker|colleague|teacher|"
    r"therapist|doctor|roofer|babysitter|employee|roommate|landlord|friend|rival|classmate|student|daughter|son|"
    r"brother|sister|"
    r"mother|father|tenant|competitor|nanny|mailman|plumber|lawyer|dentist|hairdresser|manager|professor|client|"
    r"patient|kid|crush)"
    r"\w*(?:'s?)?(?: \w+'s?)?|people's|users'?|customers'?|a private (?:person|individual)(?:'s)?|individuals'?)"
)

#: Name -> (category, pattern). A pattern sees folded text in lower case; `gap` keeps it within one sentence.
RULES: Mapping[str, tuple[str, str]] = {
    "harm to a person": ("violence", rf"\b{ASK}{gap(8)}(?:{KILL}{gap(3)}{PERSON})\b"),
    "wish to harm": ("violence",
        rf"\b(?:i|we)(?:'m| am|'ll| will)? (?:want|going|need|plan|would like|wanna|"
        rf"gonna)(?: to)? {KILL}{gap(3)}{PERSON}\b"),
    "broken bones": (
        "violence",
        rf"\b{ASK}{gap(6)}(?:\w+){gap(2)}(?:someone|somebody|a person|a human|people|my \w+|his|her|their|"
        rf"an? \w+ person)(?:'s)?"
        rf"{gap(1)}(?:face|skull|neck|spine|bones?|kneecaps?|jaw|ribs|kidneys?|throat|artery|head off|"
        rf"fingers off|eyes out|limbs)\b",
    ),
    "bare harm": ("violence", rf"^\W*{KILL}{gap(2)}{PERSON}\b"),
    "violent act": (
        "violence",
        rf"\b{ASK}{gap(8)}(?:torture methods?|(?:mass|school|church|nightclub) shooting|"
        rf"physical(?:ly)? (?:assault|abuse)|domestic (?:abuse|violence)"
        r"|knockout punch on|headshot with|dead body|human (?:flesh|meat|sacrifice)|cannibali\w+|death threats?|"
        r"hit ?m[ae]n|dog ?fight\w*|cock ?fight\w*"
        rf"|animal (?:cruelty|abuse)|violent (?:riot|protest|uprising|attack)s?|(?:plan|"
        rf"arrange) (?:\w+ )?{PERSON}(?:'s)? (?:death|murder)|someone's death)\b",
    ),
    "destruction": (
        "violence",
        rf"\b{ASK}{gap(6)}(?:blow(?:ing)? up|bomb(?:ing)?|burn(?:ing)? down|set(?:ting)? fire to|"
        rf"set(?:ting)? off|demolish|destroy|smash|slash|torch)"
        rf"{gap(4)}(?:house|home|building|school|church|mosque|synagogue|hospital|concert|stadium|airport|plane|"
        rf"train|bridge|embassy|car|tires|tyres|motorbike|crowd|city|mall|office)\b",
    ),
    "weapon": ("weapons", rf"\b{MAKE}{gap(6)}{WEAPON}\b"),
    "weapon at work": (
        "weapons",
        rf"\b{ASK}{gap(8)}(?:bomb[- ]making|homemade (?:bomb|explosive|gun|weapon)s?|use (?:of )?(?:a |"
        rf"an )?{WEAPON} (?:to|for) (?:commit|kill|harm|rob|threaten)"
        rf"|{WEAPON}{gap(4)}(?:to kill|to commit|to harm|to murder|that can kill|from home|at home|household|"
        rf"to attack)|(?:3d|3-d)[- ]print\w*{gap(3)}{WEAPON}"
        rf"|weapon\w*{gap(6)}kill|{WEAPON} (?:and its detonat\w+|making)|stadium explosion)\b",
    ),
    "drug": ("drugs", rf"\b(?:{MAKE}|{SPREAD}|using|use of|inject\w*|smok\w+|abuse|abusing){gap(4)}{DRUG}\b"),
    "drug in hand": ("drugs",
        rf"\b{ASK}{gap(6)}{DRUG}{gap(4)}(?:online|without a prescription|at home|undetected|dark ?web|across|"
        rf"border|to (?:kids|minors|children|teen\w*)|in (?:my|their|someone's) drink|synthesi[sz]ed)\b"),
    "intrusion": ("cyber",
        rf"\b(?:{ASK}{gap(8)})?(?:hack(?:s|ing)?(?: into)?|break(?:ing)? into|crack(?:ing)?|hijack(?:ing)?|"
        rf"breach(?:ing)?|infiltrat\w+|compromis(?:e|ing)|tap(?:ping)? into|spoof\w*|"
        rf"jailbreak\w*){gap(5)}{_SYSTEM}\b"),
    "attack on computers": ("cyber", rf"\b{ASK}{gap(9)}{ATTACK}\b"),
    "attack by hand": (
        "cyber",
        rf"\b{ASK}{gap(8)}(?:exploit\w*{gap(5)}vulnerabilit\w+|bypass\w*{gap(4)}(?:security|antivirus|anti-virus|"
        rf"authentication|firewall\w*|two-factor|2fa|drm|paywall\w*|filters?|verification|surveillance|licen\w+|"
        rf"protection\w*|locks?)"
        rf"|unauthori[sz]ed (?:access|entry)|gain\w*{gap(3)}access to{gap(4)}{_SYSTEM}|"
        rf"crack\w*{gap(2)}passwords?|guess\w*{gap(2)}passwords?|evad\w+{gap(2)}(?:anti-?virus|firewall\w*|"
        rf"detection)"
        rf"|(?:steal|harvest|exfiltrat|intercept|scrap|leak|skim)\w*{gap(5)}(?:data|information|credentials?|"
        rf"passwords?|cookies|secrets|files|records|emails|messages|details)"
        rf"|crash\w*{gap(3)}(?:computer|system|server|website|network|car|plane)|tak(?:e|"
        rf"ing) down{gap(3)}(?:website|server|network|grid|site)|disabl\w+{gap(3)}(?:antivirus|alarm|security|"
        rf"firewall|cameras?|safety)"
        rf"|(?:permanently )?delet\w+{gap(3)}files|infect\w*{gap(4)}(?:computer|system|device|plant|phone|"
        rf"network|people)\w*|remote(?:ly)? (?:access|control){gap(3)}(?:someone|victim|other|car)\w*|"
        rf"circumvent\w*{gap(3)}\w+|spam (?:messages?|emails?|bots?)|click fraud|(?:ip|caller id|email) spoofing|"
        rf"illegally access\w*|malicious (?:code|software|payload|link|script|app|browser|macro)\w*|"
        rf"take control of|autonomous weapon|facial recognition evasion|interfer\w+ with{gap(4)}(?:operation|"
        rf"system|transport\w*|signal|network|election|communication)\w*|fake{gap(2)}accounts?)\b",
    ),
    "fraud": ("fraud", rf"\b{ASK}{gap(9)}{FRAUD}\b"),
    "deception for gain": (
        "fraud",
        rf"\b{ASK}{gap(8)}(?:(?:trick|dupe|fool|con|scam|deceiv|manipulat|pressur|coerc|lur)\w*{gap(4)}(?:people|"
        rf"person|someone|users?|customers?|investors?|elderly|seniors?|victims?|voters?|consumers?|children|"
        rf"kids|public|women|girls|viewers?|employees?|them){gap(6)}(?:into|out of|giv\w+|money|bank|information|"
        rf"buy\w*|believ\w+|opinion|techniques|tactics)"
        rf"|steal\w*{gap(5)}(?:money|cash|car|cars|vehicle|bike|credit|store|shop|bank|charity|nonprofit|"
        rf"employer|company|jewel\w*|package\w*|identity|identities|others?|people|someone|anything|goods|"
        rf"merchandise|copper|art|painting|secrets|property)|stealing without|rob(?:bing)?{gap(4)}(?:bank|store|"
        rf"house|person|people|someone|casino|train|jewel\w*|museum)"
        rf"|shoplift\w*|pick-?pocket\w*|hot-?wir\w+|break(?:ing)? into{gap(3)}(?:house|home|car|vault|bank|store|"
        rf"building|office|apartment|locker|location|safe|secured)|pick\w* a lock|"
        rf"exploit\w*{gap(4)}(?:vulnerable|elderly|loophole\w*|workers?|consumers?|insecurities|fears|customers?|"
        rf"people|children|poor)"
        rf"|manipulat\w+{gap(4)}(?:markets?|stock\w*|financial|election\w*|prices?|voters?|search|algorithms?|"
        rf"opinion|public|consumers?|data|people)|rig\w*{gap(3)}(?:election|vote|lottery|contest|game|slot)\w*|"
        rf"pirated?{gap(3)}(?:content|software|movies?|games?|music|copies|books?)|plagiari[sz]\w+|"
        rf"cheat\w*{gap(3)}(?:test|exam|tests|exams|taxes|customers|casino)|avoid{gap(3)}tax\w*{gap(2)}illegally|"
        rf"mislead\w*{gap(3)}(?:public|people|voters|customers|investors|consumers|users|readers)|unsuspecting|"
        rf"financial gain|sell(?:ing)?{gap(3)}(?:organ|organs|kidney|stolen)\w*|over-?charg\w+ customers|"
        rf"vulnerable (?:people|population|individual|target)s?)\b",
    ),
    "crime": ("crime",
        rf"\b(?:commit(?:s|ting)?|engag\w+ in|carry(?:ing)? out|perpetrat\w+|plan(?:ning)?|"
        rf"get(?:ting)? away with|participat\w+ in|stag(?:e|ing)|organi[sz]\w+|perform(?:ing)?|conduct(?:ing)?|"
        rf"facilitat\w+|accomplic\w+|execut(?:e|ing)){gap(5)}{CRIME}\b"),
    "hiding a crime": (
        "crime",
        rf"\b{ASK}{gap(10)}(?:(?:avoid|evad|escap|elud)\w*{gap(3)}(?:detection|police|law enforcement|capture|"
        rf"arrest|getting caught|being caught|justice|authorities|prosecution|surveillance|customs|security|"
        rf"correctional|prison|jail|checkpoint)|without getting caught|without being (?:caught|detected)|"
        rf"get away with it|dispos\w+ of{gap(3)}(?:body|bodies|corpse|evidence)|hid(?:e|ing){gap(2)}(?:body|"
        rf"corpse|dead|evidence|bodies)|destroy\w*{gap(2)}evidence|conceal\w*{gap(3)}(?:crim\w+|evidence|body|"
        rf"murder|weapon)|tamper\w*{gap(2)}(?:evidence|witness|ballot|brakes?|food|jury)|"
        rf"chop(?:ping)? up{gap(3)}body|saw a body|witness intimidation|intimidat\w+{gap(2)}(?:witness|jur)\w*)\b",
    ),
    "smuggling and sabotage": (
        "crime",
        rf"\b{ASK}{gap(8)}(?:smuggl\w+|traffick\w+|human trafficking|sabotag\w+|vandali[sz]\w+|trespass\w*|"
        rf"loot(?:ing)?|riot(?:ing)?|poach\w+|illegal(?:ly)?{gap(3)}\w+|forced labou?r|sweat ?shop|child labou?r|"
        rf"child soldiers?|black market|dark ?web|(?:bypass|get past|sneak past|evade){gap(3)}(?:security|"
        rf"customs|border|tsa)|without proper documentation|toxic waste|hazardous waste|bribe\w*|assassinat\w*|"
        rf"terroris\w+|extremist\w*|isis|al-?qaeda|coup|overthrow\w*|insurrection|organ (?:trade|harvest)\w*|"
        rf"underground (?:casino|market)|street rac\w+|drunk driving|dangerous (?:behaviou?rs?|challenge|stunt|"
        rf"activit)\w*|economic instability|chaos|panic|cult\b|disrupt\w*{gap(4)}(?:infrastructure|transport\w*|"
        rf"power|supply|election|emergency|grid|economy|care|patient)|cause{gap(3)}(?:harm|damage|panic|chaos|"
        rf"crash|outage|blackout)|stolen goods|radicali[sz]\w+)\b",
    ),
    "harassment": (
        "harassment",
        rf"\b{ASK}{gap(8)}(?:stalk(?:s|ing)?|harass\w*|bull(?:y|ies|ied|ying)|cyber-?bull\w*|doxx?(?:ing|ed)?|"
        rf"intimidat\w+|threatening{gap(2)}(?:letter|message|email|note|call|text)s?|revenge porn|defam\w+|"
        rf"slander\w*|libel\w*|ruin\w*{gap(4)}(?:reputation|life|career|marriage)|damage\w*{gap(4)}reputation|"
        rf"humiliat\w+|body[- ]?sham\w*|fat[- ]?sham\w*|slut[- ]?sham\w*|cat-?fish\w*|gas-?light\w*|swatting|"
        rf"hate mail|trolling|inflammatory|insult(?:s|ing)?|demean\w*|degrad(?:e|ing)|"
        rf"mock(?:ing)?{gap(3)}{GROUP}|false accusations?|brainwash\w*|blackmail\w*|emotional(?:ly)? abus\w+|"
        rf"psychological(?:ly)? (?:manipulat|abus|torment)\w*|manipulat\w+{gap(2)}(?:someone|people|him|her|them|"
        rf"my|partner|child\w*|woman|women|girl\w*|others)|unsafe in their|coerc\w+|control(?:ling)? (?:my|"
        rf"your) (?:wife|girlfriend|partner|husband)|send\w* threats|abusive (?:message|comment|text|"
        rf"language)s?)\b",
    ),
    "hate": ("hate", rf"\b{SPREAD}{gap(6)}{HATE}\b"),
    "hateful work": (
        "hate",
        r"\b(?:racist|sexist|homophobic|transphobic|anti-?semitic|islamophobic|xenophobic|misogynist\w*|bigoted|"
        r"offensive|derogatory|hateful|nazi|white suprem\w+|ableist|supremacist|dehumani[sz]ing)"
        rf"{gap(2)}(?:jokes?|speech|articles?|tweets?|posts?|songs?|poems?|e-?mails?|letters?|manifestos?|memes?|"
        rf"comments?|essay|rant|slogans?|propaganda|content|caricature|remarks?|story|stories|statements?|"
        rf"campaign|chant|message|blog|paragraph|slurs?|film|video|game|language|monologue)\b",
    ),
    "against a group": (
        "hate",
        rf"\b(?:why|reasons?|explain|argue|prove|essay|article|convince)\b{gap(9)}{GROUP}{gap(8)}(?:not (?:be|"
        rf"have|get|hold|vote|marry|deserve|attend|adopt)|better not|best not|inferior|weaker|lazier|stupid\w*|"
        rf"dumb\w*|less (?:intelligent|capable|human|worthy|deserving|than)|lazy|criminals?|dirty|violent|greedy|"
        rf"evil|subhuman|banned|barred|denied|deported|kicked|discriminated|segregated|enslaved|excluded|"
        rf"prohibited|should (?:not|be (?:banned|barred|denied|deported|killed|removed|fired))|don't deserve|"
        rf"shouldn't|terrorists|parasites|vermin|ruining|destroying|to blame|disgusting|submissive|unfit|"
        rf"voting rights|not to have)\b",
    ),
    "against a group by a question": (
        "hate",
        r"\b(?:why|reasons|explain|argue)\b(?:[^\w.!?\n]+\w+){0,5}[^\w.!?\n]+(?:should|best|better|must|ought|good)"
        rf"{gap(4)}{GROUP}{gap(3)}(?:not|better not|best not|never|be denied|be barred|be kicked|be excluded|"
        rf"be banned|be prevented from"
        r"|be prohibited|be forced|be discriminated|be deported|be fired|be stripped|voting rights|less rights|"
        r"fewer rights)\b",
    ),
    "a group made small": (
        "hate",
        rf"\bwhy (?:are|is|do|does){gap(1)}(?:all |most |so many )?{GROUP}{gap(1)}(?:always |all |"
        rf"generally )?(?:so|so much|too|such|more|less)"
        rf"{gap(2)}(?:weak\w*|stupid\w*|dumb\w*|lazy|lazier|dirty|dirtier|greedy|violent|dishonest|inferior|"
        rf"worse|annoying|ugly|evil|criminal\w*|bad|smelly|loud|backward\w*"
        r"|primitive|intelligent|smart|capable|trustworthy|terrorists?|thieves)\b",
    ),
    "eradication": (
        "hate",
        rf"\b(?:eradicat\w+|exterminat\w+|eliminat\w+|annihilat\w+|wip(?:e|ing) out|get(?:ting)? rid of|"
        rf"cleans(?:e|ing)|deport\w*|enslav\w+|sterili[sz]\w+|purg(?:e|ing)|oppress\w*|subjugat\w+|"
        rf"persecut\w+){gap(3)}{GROUP}\b",
    ),
    "atrocity praised": (
        "hate",
        rf"\b(?:(?:benefits?|success\w*|succes|advantages?|achievements?|positives?) of{gap(6)}(?:genocide|"
        rf"holocaust|slavery|slave trade|ethnic cleansing|khmer rouge|pol pot|hitler|nazi\w*|stalin|isis|taliban|"
        rf"apartheid|kkk|massacre|assassination|concentration camp|9/11|attacks?|pinochet|rule)|(?:replicate|"
        rf"recreate|repeat|emulate|copy|imitate|reproduce|use){gap(8)}(?:9/11|auschwitz|holocaust|genocide|"
        rf"khmer rouge|pinochet|hitler|nazi\w*|massacre|assassination|concentration camp|attacks?|columbine|"
        rf"taliban|stalin|unabomber)|(?:hitler|isis|nazis?|stalin|pol pot|taliban|kkk|slave trade|slavery|"
        rf"holocaust|genocide|apartheid|colonialism){gap(4)}(?:right to|justified|good thing|actually good|"
        rf"a hero|great leader|did nothing wrong|never happened|was right|heroic)|like under the taliban|"
        rf"morally justified to)\b",
    ),
    "wrong called right": (
        "hate",
        rf"\b(?:why|how|reasons?|argue|explain|essay)\b{gap(5)}(?:hitler|isis|nazi\w*|stalin|pol pot|taliban|kkk|"
        rf"al-?qaeda|mussolini|apartheid|slavery|genocide|terroris\w+|pinochet|franco)"
        rf"{gap(5)}(?:right|justified|good|hero\w*|great|correct|moral\w*|necessary|admirable)\b",
    ),
    "lies": ("misinformation", rf"\b(?:{SPREAD}|outlin\w+|amplif\w+|facilitat\w+|plant\w*|use of){gap(7)}{LIES}\b"),
    "self-harm": ("self_harm",
        rf"\b(?:{ASK}{gap(9)}{SELF_HARM}|commit{gap(1)}suicide (?:and|using|by|with|without)|(?:easiest|best|"
        rf"painless|quickest|fastest|least painful|most effective) way to (?:die|kill myself|end my life)|"
        rf"suicide (?:methods?|pact|note)|what can i take to die)\b"),
    "minors": ("child_safety",
        rf"\b(?:child porn\w*|csam|kiddie porn|jailbait|{_MINOR}{gap(6)}{_SEX}|{_SEX}{gap(6)}{_MINOR}|lolicon|"
        rf"shotacon|pedophil\w+ (?:ring|forum|content|network|manual|guide|handbook)|pos(?:e|es|ing) as a minor|"
        rf"groom\w*{gap(3)}(?:child\w*|minors?|teen\w*|kids?|other users|users|girls?|boys?|online))\b"),
    "child harmed": ("child_safety",
        rf"\b{ASK}{gap(8)}(?:child(?:ren)? (?:is |are |being )?(?:harmed|killed|abus\w+|neglect\w*|exploit\w+)|"
        rf"child (?:abuse|exploitation|marriage|bride)|abus\w+{gap(3)}child\w*|kidnap\w*{gap(3)}{_MINOR}|"
        rf"lur\w+{gap(3)}{_MINOR}|teach\w* (?:children|kids){gap(6)}(?:firearms?|guns?|drugs?|weapons?|alcohol|"
        rf"smok\w+|gambl\w+))\b"),
    "sexual": (
        "sexual",
        rf"\b{ASK}{gap(8)}(?:sexual(?:ly)? (?:assault|explicit|abus\w+|exploit\w+|violence|harass\w*)|"
        rf"explicit (?:sex\w*|porn\w*|erotic\w*)|porn(?:ograph\w+)?|erotic (?:story|fiction|scene|novel)|"
        rf"rape (?:scene|fantasy|story|drug)|non-?consensual|up-?skirt\w*|revenge porn|bestiality|zoophil\w+|"
        rf"incest\w*|necrophil\w+|hidden camera{gap(4)}(?:bathroom|bedroom|shower|room|changing)|nude (?:photos?|"
        rf"pictures?|images?) of|without (?:her|his|their) consent|date rape|sex (?:tape|slave|traffick\w+|"
        rf"with (?:a |an )?(?:animal|corpse|unconscious|drunk|sleeping)\w*)|prostitut\w+|escort service|"
        rf"undress(?:es|ing)?{gap(3)}(?:app|women|people|girls?)|deepfake porn)\b",
    ),
    "privacy": ("privacy",
        rf"\b(?:find|get|access|obtain|look up|track|steal|read|see|check|learn|discover|figure out|spy|snoop|"
        rf"hack|know|view|what is|what's|what are|where is|is|reveal|leak|expose|"
        rf"out){gap(4)}{_THEIRS}{gap(3)}{RECORD}\b"),
    "private matters": (
        "privacy",
        rf"\b(?:what|what's|where|find|get|see|access|learn|know|tell me|is){gap(4)}(?:my|"
        rf"our) (?:\w+ ){{0,2}}\w+'s (?:\w+ ){{0,2}}(?:medical (?:record|history)\w*|sexual orientation|"
        rf"sexuality|religious belief\w*|religion"
        r"|political (?:affiliation|view|belief)\w*|criminal (?:record|history)|browsing history|private \w+|"
        r"tax (?:record|return)s?|bank account\w*|passport number|mental health \w+|immigration status|ethnicity|"
        r"trade union \w+"
        r"|login|passwords?|pin|text messages|dms|whereabouts|home address)\b",
    ),
    "membership": ("privacy",
        rf"\bis (?:my|our) (?:employee|neighbou?r|boss|colleague|co-?worker|teacher|student|tenant|"
        rf"applicant)\w*{gap(4)}(?:member of|gay|pregnant|muslim|jewish|hiv|union|trans|lesbian|in debt|"
        rf"an immigrant)\b"),
    "spying": ("privacy",
        rf"\b{ASK}{gap(8)}(?:spy(?:ing)? on|surveil\w*{gap(2)}(?:people|someone|citizens|users|my)|track(?:s|"
        rf"ing)?{gap(3)}(?:someone|people|person|my (?:wife|husband|girlfriend|boyfriend|ex|partner)|location|"
        rf"movements|users){gap(4)}(?:without|secretly|location|know\w*|phone)|wiretap\w*|eavesdrop\w*|"
        rf"record\w*{gap(3)}(?:someone|people|conversations?){gap(3)}(?:without|secretly)|"
        rf"without{gap(2)}(?:knowledge|consent|permission)|personal data{gap(6)}(?:third part\w+|without|"
        rf"sell\w*)|secretly (?:record|film|watch|monitor|track|install)\w*|de-?anonymi[sz]\w+|stalker ?ware|"
        rf"private data)\b"),
    "false reviews": ("fraud",
        rf"\b(?:fake|false|fabricated|misleading) (?:\w+ )?(?:reviews?|testimonials?|endorsements?|ratings?)|"
        rf"review{gap(3)}(?:product|service|restaurant){gap(4)}(?:not used|never used|have not|haven't)\b"),
    "poison": ("violence",
        rf"\b{ASK}{gap(8)}(?:poison\w*{gap(3)}(?:someone|somebody|people|person|water|food|drink|reservoir|"
        rf"supply|wife|husband|dog|cat|neighbou?r\w*)|natural death|kill{gap(3)}(?:plants or animals|"
        rf"animals for)|ecological damage|harm{gap(2)}(?:animals|others|people|children|passengers|patients)|"
        rf"lives at risk|hit ?list)\b"),
}  # fmt: skip
