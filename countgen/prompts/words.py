"""Words whose sense in a prompt no dictionary tells: what counts nothing, what groups, what ends a phrase.

Parts of speech are not here (see ``lexicon``); these tables hold what a number before or behind a word means.
"""

from __future__ import annotations

from typing import Final


def words_of(text: str) -> frozenset[str]:
    """Return the set of the words in a text; how the tables are written."""
    return frozenset(text.split())


# --- small words -------------------------------------------------------------------------------

PREPOSITIONS: Final = words_of(
    """about above across against along alongside among amid amidst amongst around as at atop before
    behind below beneath beside besides between beyond by despite down during except facing for from
    in inside into like near next of off on onto opposite out outside over past per save since than
    through throughout till to toward towards under underneath unlike until up upon versus via vs
    with within without"""
)
ARTICLES: Final = words_of("a an")
POSSESSIVES: Final = words_of("his her their my our your its")
DEFINITE: Final = words_of("the these those all both") | POSSESSIVES
PRONOUN_BEFORE_ONE: Final = words_of("this that each every any another which some no")
PRONOUNS: Final = words_of(
    """he she it they them him we us you i me himself herself themselves itself others ours yours theirs
    everyone everybody someone somebody anyone anybody nobody everything something nothing"""
)
AUXILIARIES: Final = words_of(
    """is was are were be been being am isn't aren't wasn't weren't has have had having do does did can
    could will would shall should may might must"""
)
# What ends a noun phrase, together with punctuation and the next number.
FUNCTION_WORDS: Final = (
    PREPOSITIONS
    | ARTICLES
    | DEFINITE
    | PRONOUN_BEFORE_ONE
    | PRONOUNS
    | AUXILIARIES
    | words_of(
        """and or but nor plus while where when whereas who whom whose what how why if so then
        though although because not there here too also only just even together alone apart away
        left-hand right-hand forward always sometimes often never again now afterwards
        outdoors indoors upstairs downstairs overseas upwards downwards sideways neither either none
        x each-other everywhere means"""
    )
)
AND: Final = words_of("and & plus +")
SENTENCE_ENDS: Final = frozenset(".!?;\n")

# Before a number, "about" and its like bound it where a clause begins, else they are places.
ALWAYS_BOUNDS: Final = words_of(
    """approximately roughly nearly almost circa approx ca least most maximum minimum maybe perhaps ~
    ≈ < > ≤ ≥"""
)
BOUNDS_AT_START: Final = words_of("about around over under above below beyond past some near")
COMPARATIVES: Final = words_of("more less fewer greater other bigger smaller rather larger")
OPENERS: Final = words_of("of with are is were was have has and or contains containing showing")

# --- nouns that a number is no count of --------------------------------------------------------

# Abbreviated units are measures whatever follows: "50 mm lenses".
ABBREVIATED_UNITS: Final = words_of(
    """am pm a.m a.m. p.m p.m. bc ad bce ce b.c. a.d. mm cm m km nm um mi ft kg g mg lb lbs oz ml kw hp hz
    khz mhz ghz kb mb gb tb dpi ppi px mp fps bpm mph kph kmh iso usd eur gbp k d pct o'clock"""
)
# Those of money, size and heat nearly always are; the second words make things of them ("pound cake").
STRONG_UNITS: Final = words_of(
    """inch inches meter meters metre metres centimeter centimeters centimetre centimetres
    millimeter millimeters millimetre millimetres kilometer kilometers kilometre kilometres mile miles
    acre acres kilo kilos kilogram kilograms gram grams pound pounds ounce ounces ton tons tonne tonnes
    liter liters litre litres gallon gallons watt watts volt volts pixel pixels megapixel megapixels
    percent percentage degree degrees celsius fahrenheit dollar dollars euro euros yen rupees cent
    cents penny pence bucks foot feet iterations fourths fifths sixths eighths tenths halves thirds
    dimensional century centuries decade decades carat carats"""
)
UNIT_COMPOUNDS: Final = {
    "pound": words_of("cake cakes sign signs coin coins note notes shop shops puppy puppies"),
    "foot": words_of(
        "stool stools soldier soldiers bridge bridges path paths prints doctors baths"
    ),
    "inch": words_of("worm worms"),
    "mile": words_of("stone stones marker markers sign signs post posts"),
    "dollar": words_of("bill bills coin coins note notes sign signs store stores"),
    "euro": words_of("coin coins note notes bill bills sign signs"),
    "cent": words_of("coin coins piece pieces"),
    "penny": words_of("coin coins loafer loafers farthing farthings jar jars"),
    "percent": words_of("sign signs"),
    "pixel": words_of("sprite sprites character characters artist artists heart hearts"),
}
# These measure when they head the phrase ("two long days"), and not before a plural ("day lilies").
WEAK_UNITS: Final = words_of(
    """year years month months week weeks weekend weekends day days hour hours minute minutes second
    seconds night nights time times noon midnight morning mornings evening evenings afternoon
    afternoons summer summers winter winters autumn autumns half third quarter quarters step steps
    stage stages way ways bit bits side sides dimension dimensions yard yards monday tuesday wednesday
    thursday friday saturday sunday"""
)
EXTENTS: Final = words_of("tall high long wide deep away above below apart off across thick")
# "four leaf clover", "five star hotel": the number belongs to the modifier.
MODIFIERS: Final = words_of(
    """piece star leaf wheel door story storey course layer tier lane seat seater seasons string
    panel player man person people point tone speed stroke cylinder room bedroom finger legged part
    ply picture photo page way headed sided eyed armed winged toned tiered pronged tined handed
    horned masted layered pointed cornered seated wheeled bladed doored toed fingered tailed poster
    digit letter drawer burner shot volume family colour color"""
)
# A number after one of these is a name.
NUMBER_SIGNS: Final = words_of("number numbers numeral digit digits no no. nr nr. #")
READING: Final = words_of("read reads reading")  # a sign reads "12", people read two books
SAYING: Final = READING | words_of(
    """says say saying said labeled labelled marked numbered
    printed named called titled entitled spelling spells"""
)
LABELS: Final = words_of(
    """room route interstate avenue highway chapter page volume vol part episode season scene act level
    step steps phase version ver v model type class grade rank tier size age aged turning turns
    year section apartment apt suite terminal gate platform flight apollo formula district studio
    catch player exhibit world war seed cfg iso top figure fig dock sector area unit track windows
    playstation xbox iphone galaxy mark gen generation quality s ar stylize chaos scale clip skip"""
)
# A count of these is none of objects in the picture.
ABSTRACT: Final = words_of(
    """background foreground sky sunset sunrise style view angle perspective version color colour
    shade tone lighting shadow text watermark signature logo border blur noise makeup gravity
    dimension part way time size direction idea matter doubt problem need reason wonder
    composition atmosphere mood weather resolution quality detail caption depth longer effect kind type
    sort variety breed brand flavor flavour thing moment chance attempt stage level inspiration
    purpose language"""
)
# "in one corner", "in a single row": where or how things stand.
PLACES: Final = words_of(
    """row line column file circle ring group pile stack corner side end edge place direction piece go
    frame shot picture photo image moment time way hand foot leg arm knee hole formation position
    scene spot area half go sitting step tone color colour style"""
)
# "standing on one leg", "with no hands": a number of these says how someone stands, not how many there are.
BODY_PARTS: Final = words_of(
    "hand foot leg arm knee paw eye ear finger thumb elbow shoulder hoof thigh hip wrist heel toe cheek"
)
# "a plate broken into two pieces"
BROKEN_INTO: Final = words_of("piece part half section chunk bit portion")
DEPICTIONS: Final = words_of(
    """photo photograph picture image drawing painting sketch render rendering illustration portrait
    depiction shot closeup close-up collage poster print view scene snapshot photography artwork mural
    watercolor watercolour cartoon still-life life up sculpture statue"""
)
# "slices of pizza": the noun means little without its complement.
PORTIONS: Final = words_of(
    """slice piece bunch group row pile stack loaf herd flock crowd set bouquet bundle heap
    team pack school swarm column line wedge chunk"""
)
VAGUE: Final = words_of(
    """lot few number variety couple bit range series ton plenty host handful little half pair group
    bunch crowd herd flock row pile set"""
)
# "a group of five people": the five are counted, and a verb in the singular may follow.
COLLECTIVES: Final = words_of(
    """group crowd family pack flock herd team set row line trio pair couple band company crew bunch
    collection series stack pile tower audience pride swarm school colony litter array cluster
    gang squad circle ring selection heap box bag basket tray"""
)
# Before the noun, but not part of it ("three more cats").
FILLERS: Final = words_of(
    """more other additional extra different identical separate distinct individual total whole-number
    similar-looking"""
)
NOT_AFTER_NO: Final = words_of(
    "one longer more less matter doubt way idea wonder sign trace entry exit evidence particular other"
)
# "each", "per": what makes a number one per something.
EACH: Final = words_of("each every apiece per")

# --- numbers -----------------------------------------------------------------------------------

SCALES: Final = words_of("hundred thousand million billion")
GROUPS: Final = {
    "dozen": 12,
    "dozens": 12,
    "pair": 2,
    "pairs": 2,
    "couple": 2,
    "duo": 2,
    "trio": 3,
    "trios": 3,
    "quartet": 4,
    "quartets": 4,
    "quintet": 5,
}

# --- kinds of things ---------------------------------------------------------------------------

# A list of people behind one of these that makes up its number names them: "two people, a man and a woman".
GENERAL: Final = words_of(
    """person child kid adult friend sibling twin figure character player musician dancer performer worker
    student athlete guest visitor rider passenger member family youngster teenager toddler"""
)
PEOPLE: Final = words_of(
    "man woman boy girl child kid baby toddler teenager teen adult lady gentleman guy brother sister elder"
)
# What tells members of one kind apart: "three zebras, two adults and a calf", "two cakes, one vanilla ..."
MEMBERS: Final = words_of(
    """adult baby calf cub foal lamb chick puppy kitten male female mother father parent juvenile
    youngster infant junior senior vanilla chocolate lemon strawberry raspberry caramel mint pistachio
    cinnamon pepperoni cheese decaf espresso child"""
)
# Verbs that are nouns too, and far more often verbs where they follow a noun in a caption.
POSTURES: Final = words_of(
    """stand sit lie rest sleep run walk jump play dance look watch wait talk ride fight float swim fly
    drift lean hang race climb crawl swing sail drink chase hug kiss pose gaze stare smile laugh sing
    march fish roam soar gather perch cross face hover glow rise fall roll slide spin stroll travel
    wander work study snooze nap bask cuddle snuggle peek wave point reach pass share lounge tower
    kick leap skate ski surf row paddle hunt feed hop dash splash grapple charge mate approach line
    sprint crouch squat bow cheer cook eat graze howl bark battle duel wrestle cling huddle"""
)
# -ing and -ed words that are nouns, or the first halves of compounds.
NOT_VERBS: Final = words_of(
    """building string spring painting ceiling earring wedding pudding clothing evening morning
    lightning dumpling duckling gosling seedling sibling sapling crossing sterling herring starling
    yearling bearing awning railing icing fitting dining parking swimming sewing washing rocking
    fishing hunting sailing boxing bowling baking cooking frying racing skiing walking-stick
    steering shopping sleeping-bag moped biped quadruped watershed seabed flatbed ring wing king sling
    swing thing bling wingding drawing carving etching offspring sterling stocking legging topping
    filling dressing stuffing landing frosting engraving moulding molding planking grating scaffolding
    bedding binding lettering gelding opening offering dwelling flooring roofing siding clipping covering
    kindling rigging padding upholding matting"""
)
# Things that the lexicon holds as verbs or adjectives only.
MISSING_NOUNS: Final = words_of(
    """bar log pan top chime handcuff remote broach blinder dam drape lounge steed stud ace soap pelt
    splint mail tailgate desktop daybed can retreat inset canine feline legging"""
)
# "one trash can": elsewhere "can" is a verb.
_CANS = "beer milk trash watering aerosol soda tin spray paint garbage oil tuna coffee gas soup cola rubbish"
CAN_OF: Final = words_of(_CANS) | words_of(
    "a the red blue green white black empty rusty crushed metal"
)
# Participles that make an adjective of the noun before them: "one snow covered mountain".
COMPOUNDING: Final = words_of(
    """covered filled shaped colored coloured themed painted decorated lined plated made studded topped
    flavored flavoured striped carved powered trimmed capped clad coated dusted glazed wrapped stuffed
    sized haired eyed legged crusted dipped infused tipped framed bound inspired grilled roasted cut
    handled fired spotted encrusted backed"""
)
# Verbs that never describe the noun behind them: "one holding lamps" is no kind of lamps.
TRANSITIVE: Final = words_of(
    """holding wearing carrying riding using looking watching eating showing facing pulling pushing
    wielding reading playing pointing having being doing making giving"""
)
# Words that may stand behind their noun, whatever else they can be: "one bowl full of cherries".
BEHIND_NOUN: Final = words_of(
    "full empty open closed upright high low ready alive half overhead present"
)

# Colours, materials and others that are nouns too, and describe far more often where they stand alone:
# "two red and three blue balls". What is an adjective and nothing else, the lexicon knows.
COLOURS_AND_MATERIALS: Final = words_of(
    """red green blue yellow orange purple violet pink brown black white gray grey beige tan golden
    gold silver bronze turquoise teal cyan magenta maroon lavender crimson scarlet navy colorful
    colourful multicolored dark bright light pale small little tiny mini miniature large big huge
    giant enormous tall short long wide thin thick fat round square oval flat old young new ancient
    modern vintage antique wooden metal metallic plastic ceramic porcelain leather paper stone marble
    woollen glossy matte transparent fluffy furry fuzzy cute wild clean cold hot empty full intact
    open closed cartoon realistic very quite baked fried rotten plain bare male female"""
)
"""Words that describe whatever else the lexicon says that they can be."""
