"""Nouns by meaning: what a closed vocabulary calls a thing that a user names otherwise.

The tables were written by hand for this project, from general knowledge of English and of the labels that
detectors are trained on (COCO, LVIS, Objects365, Open Images and the pocket world), and copy no thesaurus;
they are under the project's own licence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

# Different words for one thing; commas part them, the commonest comes first.
_SAME: Final = """
person, human, human being, people, individual, somebody, pedestrian
couch, sofa, settee, loveseat, love seat, divan, futon, davenport, chesterfield, sofa bed
tv, television, tv monitor, tvmonitor, television set, telly, flatscreen, tv set, monitor/tv
cell phone, mobile phone, cellphone, cellular telephone, smartphone, mobile, iphone, phone, telephone, handset
motorcycle, motorbike, moped, scooter, motor scooter, vespa, dirt bike
bicycle, bike, cycle, push bike, mountain bike, tandem
airplane, aeroplane, plane, aircraft, jet, jetliner, airliner, jet plane, biplane
car, automobile, auto, motorcar, car (automobile)
truck, lorry, pickup truck, pickup, pick-up, van, semi, tractor trailer
bus, coach, minibus, omnibus, double decker, school bus, double-decker bus, bus (vehicle)
train, locomotive, railway train, tram, streetcar, subway train, train (railroad vehicle)
boat, ship, sailboat, vessel, canoe, rowboat, rowing boat, kayak, yacht, dinghy, ferry, gondola
traffic light, stoplight, stop light, traffic signal, semaphore
fire hydrant, hydrant, fireplug
bench, park bench, pew
sheep, lamb, ewe, ram
cow, cattle, bull, ox, calf, heifer, steer
donut, doughnut, bagel (sweet), cruller
hot dog, hotdog, frankfurter, frank, wiener, sausage in a bun
cup, mug, teacup, tea cup, coffee cup, coffee mug, beaker, cup/mug, cup (drinking container)
wine glass, wineglass, goblet, wine cup, champagne flute, chalice, stemmed glass, champagne glass
glass, drinking glass, tumbler, water glass, glass (drink container)
bottle, flask, water bottle, wine bottle, beer bottle, flagon, carafe, vial
bowl, basin, dish, bowl/basin, soup bowl, salad bowl
fork, dinner fork, pitchfork (table)
knife, cutter, penknife, dagger, steak knife, table knife, pocketknife
spoon, teaspoon, tablespoon, soup spoon
orange, mandarin, tangerine, clementine, satsuma, mandarin orange, orange/tangerine, orange (fruit)
apple, crab apple, cooking apple
banana, plantain
sandwich, sub, toastie, panini, hoagie, baguette sandwich, club sandwich
cake, birthday cake, cupcake, muffin, gateau, torte, cheesecake
pizza, pizza pie, calzone, flatbread pizza
chair, seat, armchair, stool, rocking chair, deck chair, side chair
potted plant, houseplant, house plant, pot plant, pottedplant, plant, flowerpot plant
bed, bunk bed, cot, mattress, four-poster, berth
dining table, table, kitchen table, diningtable, desk, coffee table, dinner table
toilet, lavatory, loo, toilet bowl, wc, commode
laptop, notebook computer, laptop computer, portable computer, macbook, notebook pc
mouse, computer mouse, mouse (computer equipment)
remote, remote control, tv remote, zapper, clicker, remote control (tv)
keyboard, computer keyboard, keypad
microwave, microwave oven
oven, stove, cooker, range, kitchen stove, gas stove
refrigerator, fridge, icebox, freezer, fridge freezer
sink, washbasin, wash basin, washbowl, kitchen sink
book, paperback, hardback, novel, volume, textbook, magazine
clock, wall clock, alarm clock, timepiece, grandfather clock
vase, urn, amphora, flower vase
scissors, pair of scissors, shears, clippers
teddy bear, teddy, stuffed bear, plush bear, soft toy bear, stuffed toy
hair drier, hair dryer, hairdryer, blow dryer, blow-dryer
toothbrush, tooth brush, electric toothbrush
backpack, rucksack, knapsack, haversack, school bag, packsack
handbag, purse, pocketbook, clutch bag, handbag/satchel, shoulder bag
suitcase, luggage, trunk (luggage), travel bag, carry-on, valise
tie, necktie, bow tie, bowtie, cravat, tie (necktie)
umbrella, parasol, brolly, sunshade
skateboard, longboard, skating board
surfboard, surf board, bodyboard
snowboard, snow board
skis, ski, ski blades
frisbee, flying disc, flying disk, disc golf disc
sports ball, ball, soccer ball, football, basketball, tennis ball, volleyball, baseball, beach ball, golf ball
baseball bat, bat (baseball), softball bat
baseball glove, baseball mitt, catcher's mitt, mitt
tennis racket, tennis racquet, racket, racquet, badminton racket
kite, paper kite, box kite
parking meter, pay meter
stop sign, stop board
broccoli, broccoli floret, brocoli
carrot, baby carrot
elephant, mammoth
bear, grizzly, grizzly bear, brown bear, polar bear, black bear, panda, koala bear
zebra, zebra foal
giraffe, giraffe calf
bird, fowl, songbird
cat, kitty, pussycat, feline, tomcat, housecat
dog, hound, doggy, doggie, pooch, mutt, canine
horse, pony, stallion, mare, steed, foal, colt
fish, goldfish, salmon, trout, tuna, clownfish, koi, angelfish
flower, blossom, bloom
star, five-pointed star, starlet shape
mushroom, toadstool, champignon, fungus, button mushroom
penguin, emperor penguin, king penguin
sneakers, sneaker, trainers, running shoe, tennis shoe, gym shoe, running shoes
glasses, spectacles, eyeglasses, specs
hat, cap, beanie, baseball cap, sun hat, cowboy hat
lamp, table lamp, floor lamp, desk lamp
street lights, street light, streetlight, lamp post, lamppost, streetlamp
picture, picture/frame, painting, photo frame, picture frame
trash bin/can, trash can, garbage can, rubbish bin, dustbin, wastebasket, garbage bin, wastebin
faucet, tap, water tap
curtain, drape, drapes
nightstand, bedside table, night stand, bedside cabinet
cabinet/shelf, cabinet, cupboard, shelf, bookcase, bookshelf
wheelchair, wheel chair
airship, blimp, zeppelin, dirigible
helicopter, chopper
rubbish, trash, litter
pumpkin, squash, jack-o'-lantern, jack o'lantern
cookie, cookies, biscuit, biscuit (bread)
french fries, fries, chips, french fry
candle, taper, tealight
pillow, cushion
rug, carpet, mat
ladder, stepladder
drum, snare drum
camera, dslr, camcorder
watch, wristwatch, wrist watch
ring, finger ring
crown, tiara, coronet
"""
# Kinds of a thing: what the user may name before the colon's word, which a vocabulary may hold instead.
_KINDS: Final = """
person: woman, man, girl, boy, child, kid, baby, toddler
person: infant, lady, guy, gentleman, teenager, adult, player, worker
person: soldier, chef, cook, doctor, nurse, teacher, student
person: farmer, dancer, singer, musician, skier, surfer, skater
person: snowboarder, skateboarder, cyclist, rider, runner, astronaut
person: pirate, wizard, witch, knight, king, queen
person: bride, groom, tourist, hiker, firefighter
person: fireman, policeman, police officer, athlete, footballer, friend
person: mother, father, sister, brother, grandmother, grandfather
person: fisherman, sailor, monk, clown, ballerina, guard
dog: puppy, pup, poodle, labrador, retriever, golden retriever
dog: beagle, bulldog, terrier, corgi, husky, dachshund, pug
dog: chihuahua, dalmatian, german shepherd, collie, spaniel, greyhound, rottweiler, wolf, fox
cat: kitten, tabby, siamese cat, persian cat, lynx, tiger, lion, leopard
horse: donkey, mule, unicorn, zebra
cow: buffalo, bison, yak, water buffalo
sheep: goat, llama, alpaca
bird: sparrow, pigeon, dove, crow, raven, gull, seagull, duck
bird: duckling, goose, swan, eagle, hawk, owl, parrot, hen
bird: chicken, rooster, turkey, robin, flamingo, pelican, heron
bird: stork, peacock, ostrich, toucan, macaw, magpie, finch
bird: kingfisher, hummingbird, woodpecker, penguin, budgie, canary, chick, emu, crane (bird)
fish: shark, whale, dolphin, ray
car: taxi, cab, jeep, suv, sedan, limousine
car: limo, convertible, sports car, race car, police car, hatchback, minivan
truck: fire engine, fire truck, tow truck, dump truck, garbage truck, ambulance, bulldozer, tractor, minivan
boat: speedboat, cruise ship, raft, catamaran, steamboat, tugboat, barge, warship, submarine
airplane: fighter jet, helicopter, glider, seaplane, drone
bicycle: tricycle, unicycle
cup: paper cup, espresso cup, glass, tankard
bowl: plate, saucer, pot, pan
cake: pie, tart, brownie, pancake, waffle, pastry, croissant
donut: bagel, pretzel
orange: lemon, lime, grapefruit, peach, apricot
apple: pear, red apple, green apple, quince
sandwich: burger, hamburger, cheeseburger, wrap, taco, burrito, kebab
chair: throne, highchair, wheelchair, recliner, beanbag, office chair
couch: bench, ottoman
bed: crib, cradle, hammock
dining table: counter, workbench, picnic table, nightstand, side table
potted plant: fern, cactus, succulent, bonsai, bush, shrub, tree, orchid, flower
flower: rose, tulip, daisy, sunflower, lily, orchid
flower: daffodil, poppy, dandelion, lotus, carnation, violet, peony
laptop: computer, tablet, ipad, netbook, chromebook
tv: screen, monitor, computer monitor, display
cell phone: walkie-talkie, pager, payphone
remote: game controller, controller, gamepad, joystick, wii remote
handbag: bag, tote bag, satchel, briefcase, shopping bag, basket
backpack: bag
suitcase: briefcase, trunk, chest, box
bottle: jar, jug, pitcher, can, thermos, ketchup bottle
knife: sword, machete, cleaver, scalpel, butter knife
book: notebook, diary, dictionary, album, newspaper, comic, bible
clock: watch, stopwatch, timer, sundial, hourglass
vase: pot, jug, jar, pitcher
teddy bear: doll, toy, plush toy, stuffed animal, plushie
ball: marble, balloon, globe, sphere, orb
sports ball: bowling ball, rugby ball, cricket ball, ping pong ball, billiard ball, hockey puck
traffic light: signal, lamp
stop sign: sign, road sign, traffic sign, street sign, signpost
tie: scarf
umbrella: tent, canopy
skateboard: roller skates, scooter (kick)
surfboard: paddle board, wakeboard, paddleboard
bear: panda bear, teddy, cub
elephant: baby elephant, rhinoceros, rhino, hippopotamus, hippo
refrigerator: minibar, cooler
oven: grill, barbecue, pizza oven, furnace
sink: bathtub, bath, tub
toilet: urinal, bidet
mushroom: truffle, morel
star: starfish
vehicle: car, truck, bus, van, motorcycle, bicycle, boat, airplane, train
animal: dog, cat, bird, horse, cow, sheep, elephant, bear, zebra, giraffe, fish, penguin
fruit: apple, banana, orange, red apple, green apple, pear, grape, strawberry
food: pizza, sandwich, hot dog, donut, cake, banana, apple
furniture: chair, couch, bed, dining table, bench
pet: dog, cat, bird, fish
appliance: oven, microwave, refrigerator, toaster
drink: cup, bottle, wine glass
toy: teddy bear, ball, kite, sports ball
"""


@cache
def _tables() -> tuple[
    dict[str, tuple[str, ...]], dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]
]:
    """Return words of the same meaning, broader words and narrower words, each by word."""
    same: dict[str, list[str]] = {}
    for line in _SAME.strip().splitlines():
        words = [word.strip() for word in line.split(",")]
        for word in words:
            same.setdefault(word, []).extend(other for other in words if other != word)
    broader: dict[str, list[str]] = {}
    narrower: dict[str, list[str]] = {}
    for line in _KINDS.strip().splitlines():
        general, _, kinds = line.partition(":")
        for kind in kinds.split(","):
            broader.setdefault(kind.strip(), []).append(general.strip())
            narrower.setdefault(general.strip(), []).append(kind.strip())
    frozen = [
        {key: tuple(words) for key, words in table.items()} for table in (same, broader, narrower)
    ]
    return frozen[0], frozen[1], frozen[2]


def by_meaning(noun: str, vocabulary: Sequence[str], most: int = 3) -> list[str]:
    """Return names in a vocabulary that mean what a noun means, the nearest first; none if none is known.

    Other words for the thing come first, then what it is a kind of ("puppy", "dog"), and, for a word that is
    too broad for the vocabulary ("fruit"), kinds of it. Adjectives are left out of account.

    >>> by_meaning("sofa", ["chair", "couch"]), by_meaning("old woman", ["person", "dog"])
    (['couch'], ['person'])
    """
    known = {" ".join(name.lower().split()): name for name in reversed(vocabulary)}
    found: dict[str, None] = {}
    for meaning in _meanings(" ".join(noun.lower().split())):
        if meaning in known:
            found[known[meaning]] = None
        if len(found) == most:
            break
    return list(found)


def _meanings(noun: str) -> Iterator[str]:
    """Yield words for a noun, nearest first: the whole phrase, then its head; the same, broader, narrower."""
    same, broader, narrower = _tables()
    for form in _forms(noun):
        if form not in same and form not in broader and form not in narrower:
            continue
        yield form
        yield from same.get(form, ())
        general = [word for kin in (form, *same.get(form, ())) for word in broader.get(kin, ())]
        for word in general:
            yield word
            yield from same.get(word, ())
        yield from narrower.get(form, ())


def _forms(noun: str) -> Iterator[str]:
    """Yield a noun phrase, shorter and shorter from its front, each also in the singular."""
    words = noun.split()
    for start in range(len(words)):
        phrase = " ".join(words[start:])
        yield phrase
        if phrase.endswith("ies"):
            yield phrase[:-3] + "y"
        if phrase.endswith("es"):
            yield phrase[:-2]
        if phrase.endswith("s"):
            yield phrase[:-1]
        for plural, singular in (("women", "woman"), ("men", "man"), ("children", "child")):
            if words[-1] == plural:
                yield phrase.removesuffix(plural) + singular
