"""What the harm rules leave alone: idioms, harmless objects, fiction and nonsense."""

from __future__ import annotations

#: Idioms and harmless objects of the same words; they are blanked out before the rules look.
HARMLESS: tuple[str, ...] = (
    r"(?:bath|photo|seed|cherry|glitter|smoke|sex|hot chocolate|cocoa|yarn|jager|carbon|logic)[- ]?bomb\w*",
    r"bomb(?:e)? (?:calorimeter|shelter|squad|disposal|detect\w+|threat|cyclone)",
    r"kill\w* (?:time|the (?:lights?|mood|engine|vibe|pain|app|job|server|background)|two birds|a (?:bill|lead|"
        r"few hours)|bacteria|germs|viruses|mold|weeds?|moss|grass|ants?|bugs?|insects?|mosquito\w*|cockroach\w*|"
        r"roach\w*|fleas?|ticks?|lice|rats?|mice|wasps?|spiders?|flies|bed ?bugs?|pests?|vermin|termites?|slugs?|"
        r"snails?|algae|fungus|it (?:at|on|in))",
    r"kill\w* (?:an?|the|all|my|this|every|off)? ?(?:\w+ )?(?:process\w*|thread|task|program|session|switch|"
        r"command|connection|container|pod|daemon|query|tab|zombie|boss|dragon|monster|npc)s?",
    r"(?:shoot|shooting|shot)\w* (?:an?|some|the|my|for|up|at the (?:basket|stars)|"
        r"from the hip)? ?(?:\w+ ){0,2}(?:photo\w*|picture|video|film|movie|goal|hoops?|basket|scene|portrait|"
        r"documentary|star|moon|email|free throw|three-pointer|pool|range|selfie|wedding|raw)s?",
    r"shooting (?:range|star|stars|guard)|photo ?shoot\w*|trouble ?shoot\w*|target (?:audience|market|shooting)",
    r"steal\w* (?:\w+(?:'s)? ){0,2}(?:heart|hearts|show|spotlight|thunder|base|bases|kiss|glance|look|idea|"
        r"second base|scene|ball)",
    r"beat\w* (?:an?|the|my|your|some)? ?(?:\w+ ){0,3}(?:competit\w+|eggs?|heat|traffic|record|clock|odds|market|"
        r"cream|drum\w*|system|rush|level|game|high score|deadline|boss|in (?:chess|checkers|tennis|poker|"
        r"scrabble|monopoly|a race|mario kart))",
    r"(?:take|taking|took) out (?:\w+ ){0,3}(?:for|to) (?:dinner|lunch|breakfast|drinks|coffee|a date|"
        r"the movies)|take[- ]?out (?:food|menu|the (?:trash|garbage|bins?))",
    r"attack\w* (?:the )?(?:king|queen|rook|pawn|knight|bishop|problem|task|question|ball|ad|surface|on titan|"
        r"basket|rim)",
    r"(?:terminat|execut|invok|abort)\w* (?:an?|the|my|this|any)? ?(?:\w+ ){0,3}(?:programs?|process\w*|"
        r"contracts?|lease|agreement|scripts?|commands?|query|code|plan|thread|employment|subscription|service|"
        r"order|will|strategy|trade|statement|function|file|task|tests?|loop|instance|pivot|maneuver|dive)",
    r"hack\w* (?:for|to save|my (?:productivity|sleep|brain|habits|life|morning))|life ?hack\w*|growth hack\w*|"
        r"hackathons?|hacker ?rank|hacker news|ethical(?:ly)? hack\w*|hacksaw|biohack\w*|ikea hack\w*|"
        r"travel hack\w*|kitchen hack\w*|white[- ]hat",
    r"blow\w* up (?:an?|the|my|some)? ?(?:balloons?|photo|picture|air ?bed|mattress|tires?|tyres?|pool|"
        r"beach ball|image|on (?:social|tiktok|instagram|twitter))",
    r"crack\w* (?:an?|the|my|open|in)? ?(?:\w+ ){0,2}(?:eggs?|nuts?|coconuts?|walnuts?|pipe|wall|code interview|"
        r"interview|joke|screen|windshield|knuckles|back|phone screen|concrete|case|ceiling|foundation|safe in|"
        r"smile)",
    r"break\w* into (?:the )?(?:\w+ )?(?:industry|business|market|field|acting|modeling|career|song|tech|smaller|"
        r"pieces|parts|groups|steps|laughter|tears|publishing|music|a (?:smile|run|sweat|dance))",
    r"(?:drop|punch|hit|smash|crush|slay|nail|kill|destroy|annihilat|obliterat|murder|crushing|"
        r"slaying)\w* (?:an?|the|my|it|at|this|your|some)? ?(?:\w+ ){0,2}(?:punch(?:ing)? bag|target\w*|goals?|"
        r"exams?|interview|test|ball|presentation|competition|workout|karaoke|dance ?floor|outfit|deadline|"
        r"self-?doubts?|clutter|opponents? in|mosquito|pumpkin|potatoes|garlic|avocado|patriarchy|burger|record|"
        r"bake ?sale|gig|set|ice|cans?|grapes?|song|pinata|dragon|enemy (?:base|team)|level)",
    r"weed (?:my|the|your|out|killer|control|whacker|wacker|barrier|growth)|weeds? in|(?:can|bottle|glass|cup|"
        r"pack) of coke|state of ecstasy|ecstasy of|crack (?:a|the) (?:smile|joke)|(?:diet|cherry|vanilla) coke|"
        r"poppy ?seeds?",
    r"(?:prescription|generic|anti-?\w+|over-the-counter|cancer|new|approved|legal) drugs?|drug ?stores?|"
        r"drug (?:test|testing|discovery|delivery|interaction|trial|policy|addict\w*|abuse|development|design|"
        r"company|store|development)s?",
    r"(?:glue|water|squirt|nerf|toy|heat|staple|nail|caulk|spray|massage|radar|paint ?ball|bb|airsoft|price|"
        r"grease|salute|rail|lego|foam|spud|potato|super soaker) (?:gun|guns|rifle|pistol|grenade|bomb|cannon)s?|"
        r"gun (?:control|laws?|rights|safety|violence|policy|ownership|debate|show|metal|range|cabinet)|top gun|"
        r"guns n|weapons? (?:charge|ban|inspector|policy|system in|in (?:skyrim|zelda|minecraft|elden|dark souls|"
        r"dnd|d&d))",
    r"viral|(?:corona|rhino|influenza|flu|herpes|rota|adeno|noro|retro|hepatitis)[- ]?virus\w*|virus (?:scan\w*|"
        r"protection|infection|outbreak)|anti-?virus (?:software|program|tool)s? (?:for|on|to install|"
        r"recommend\w*)",
    r"trojan (?:horse|war|asteroid|condom)s?|worm (?:farm|bin|hole|compost|castings)s?|phishing (?:awareness|"
        r"training|simulation)|back ?door (?:of|key|lock|to my house)|(?:data|web) scraping",
    r"(?:time|soft|self)[- ]?execut\w+|executive|executable|execution (?:of (?:a|the) (?:plan|contract|program|"
        r"query)|time|plan)|(?:tax|income) (?:preparation|filing|bracket|deduct\w*)",
    r"strangl\w* (?:option|strateg)\w*|throttl\w* (?:down|up|download\w*|traffic|bandwidth|cpu|request|api|"
        r"my (?:cpu|internet|gpu)|body)\w*|gut(?:ting)? (?:a |an |the )?(?:fish|house|trout|renovation|health|"
        r"bacteria|microbiome|feeling|instinct)|gut-",
    r"butcher\w* (?:a |an |the |my )?(?:pig|cow|chicken|meat|lines|hog|deer|lamb|turkey|song|shop|block|paper)s?|"
        r"hang\w* (?:a |an |the |my |out|up|on|around|in|with|drywall|pictures?|curtains|picture|painting|"
        r"clothes|shelf|coat)|hanging (?:out|garden|basket)",
    r"poison\w* (?:ivy|oak|apple|control|pill|frog|dart|the well)|food poisoning|(?:rat|ant|roach|lead|"
        r"carbon monoxide|mushroom|alcohol|blood) poison\w*|poison (?:rats|mice|vermin|ants|weeds|rodents|pests)",
    r"(?:make|making|made) (?:\w+ ){0,3}explode with (?:laughter|joy)|set (?:a |the )?(?:party|dance ?floor|"
        r"stage|crowd|world) on fire|explode (?:with|in popularity)|drown\w* (?:in|my sorrows|out)|"
        r"bury myself in|killer (?:app|whale|feature|outfit|costume|instinct|deal|heels|workout|robot)s?",
    r"(?:stab|stabbing|punch|smash|shoot|drown|behead|dissect|euthani[sz]e|exterminat\w*|eliminat\w*|eradicat\w*|"
        r"annihilat\w*|hunt(?: down)?|trap|cut off the heads? of|destroy|harm|attack|hurt|kill|slaughter|poison|"
        r"get rid of) (?:an?|the|my|all|some|these|those)? ?(?:\w+ ){0,2}(?:balloons?|potato\w*|frogs?|fish|"
        r"bed ?bugs?|rats?|mice|mouse|moles?|weeds?|roach\w*|cockroach\w*|mosquito\w*|wasps?|hornets?|termites?|"
        r"ants?|aphids?|squirrels?|raccoons?|gophers?|deer|rabbits?|rodents?|acne|wrinkles|stains?|odou?rs?|"
        r"smells?|hiccups|fleas?|worms?|clutter|debt|pimples?|dandruff|mold|belly fat|cellulite|jobs?|waste|"
        r"plants?|hunger|poverty|malaria|polio|measles|cancer|disease\w*|shrimp\w*|chickens?|turkeys?|building|"
        r"dinosaurs?|zombies?|dragons?|aliens?|monsters?|vampires?|opponents?)",
    r"serial (?:number|port|killer documentary)|cereal killer|(?:mystery|murder mystery)|murder of crows|"
        r"dead (?:hamster|pixel|plant|battery|bird|fish|tree|line|lift|pet|cat|dog|mouse|goldfish)s?|"
        r"body (?:paragraph|lotion|shop|wash|building|language)",
    r"(?:price|job|cost|budget|hair|tax|spending|power) (?:cut|cuts|slash\w*)|slash\w* (?:prices|costs|budget|"
        r"fares)|axe? a (?:tree|plan)|sever (?:ties|my employment)|capture (?:a |the )?(?:mood|image|moment|"
        r"screen\w*|flag|photo)",
    r"(?:video ?game|board ?game|card game|tabletop|role-?playing|rpg) (?:designer|developer|console|night|"
        r"strategy|store|industry)s?|(?:penetration|pen|security) test\w*|capture[- ]the[- ]flag|bug bount\w+|"
        r"password manager|password reset|forgot\w* my password|my own (?:account|phone|computer|wi-?fi|laptop|"
        r"password)",
    r"(?:hate|hating) (?:my(?:self)?|it when|to (?:say|break|bother|ask|admit)|mondays|doing|cooking|running|"
        r"myself)|(?:love|hate)[- ]hate|hate to",
    r"(?:fake|false) (?:fur|tan|nails|eyelash\w*|leather|plants?|flowers?|blood|snow|teeth|positives?|negatives?|"
        r"alarms?|friends|laugh|smile|hospital|gun prop|cry)|(?:faux|mock) \w+|hypothesis|pirate (?:ship|costume|"
        r"party|flag|treasure)s?|pirates of",
    r"(?:propaganda|misinformation|disinformation|conspiracy) (?:posters?|during|in (?:world|ww|nazi|soviet)|"
        r"research\w*)|launder\w* (?:clothes|my clothes)|laundry",
    r"(?:cyber|self)[- ]?defen[cs]e|data (?:recovery|protection|privacy|breach notification)|terrible|terrific|"
        r"territor\w+|gun(?:s)? down memory",
    r"(?:attack|heart attack|panic attack|anxiety attack|asthma attack)s? (?:symptoms?|treatment|help)|(?:heart|"
        r"panic|anxiety|asthma|shark) attacks?|panic (?:disorder|at the disco|room)|(?:drug|marijuana|cannabis|"
        r"weed) legali[sz]\w+",
)  # fmt: skip
#: A game, a film or a book in which something happens, that the question is about.
FICTION = (
    r"\b(?:in|on|from|of|for|playing) (?:a |an |the |my |this |our )?(?:\w+ ){0,4}(?:video ?games?|games?|game|"
    r"movies?|films?|novels?|books?|stor(?:y|ies)|screenplays?|shows?|series|episodes?|"
    r"anime|manga|comics?|cartoons?|mods?|campaign|playthrough|speedrun|shooting range|chess|checkers|"
    r"battlefield \d|call of duty|gta(?: ?\w+)?|grand theft auto|minecraft|fortnite|skyrim|"
    r"witcher(?: \d)?|the sims|sims \d|dungeons (?:and|&) dragons|d&d|dnd|assassin'?s creed|overwatch|"
    r"league of legends|valorant|counter-?strike|dota|zelda|pokemon|elden ring|dark souls|"
    r"red dead(?: redemption)?|far cry|hitman|halo|doom|resident evil|fallout|among us|pubg|apex|"
    r"world of warcraft|cyberpunk|warzone|tekken|mortal kombat|street fighter|lego \w+|roblox|"
    r"star wars|game of thrones|lion king|die hard|ocean's 1\d|harry potter|breaking bad|lord of the rings|"
    r"laser tag|paintball|airsoft|dodgeball|tennis|baseball|football|hockey|boxing|poker|monopoly|risk|clue|"
    r"cluedo)\b"
)
#: Worlds in which nobody is harmed.
NONSENSE = (
    r"\b(?:quidditch|mercury|uranus|jedi|hobbits?|elves|x-men|avengers|mind[- ]read\w*|see the future|"
    r"walk through walls|speed of light|immortal\w*|saturn|mars|jupiter|venus|neptune|pluto|moon|the sun|"
    r"sun's|planets?|galax\w+|dimensions?|telekinesis|"
    r"telepath\w*|teleport\w*|time travel\w*|magic\w*|wizard\w*|hogwarts|unicorns?|dragons?|black hole\w*|"
    r"lasers?|lightning|super ?powers?|invisib\w+|fingertips|decibels|weather|atlantis|narnia|ghosts?|levitat\w*|"
    r"fly(?:ing)? (?:without|unaided)|breathe underwater|survive without (?:food|water|oxygen)|outer space|"
    r"event horizon|supernova|mermaids?|vampires?)\b"
)
