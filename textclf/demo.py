"""Made-up news for `--demo`: titles and a few sentences in eight categories whose words overlap.

A story is about one category and, as the article says of real ones, may be "part actuality, part health": each of
its words is drawn from its own category, from one that it is mixed with, or from words that all share. So a story
can have more words of the other category than of its own, and no classifier can be right about all of them.
Everything in a story follows from (seed, index).
"""

import numpy as np

SPLITS = {"train": 4000, "val": 600, "test": 600}
OWN, MIXED = 0.46, 0.17  # share of the words from the story's own category, and from the one it is mixed with

# who, what they do, and to what; the words of a category
_WORDS = {
    "business": ("bank investors retailer manager airline supplier shareholders company analyst startup",
                 "bought merged expanded invested hired restructured",
                 "profit shares market merger contract prices revenue factory loan tax sales brand"),
    "culture": ("director singer author museum orchestra painter actress publisher curator gallery",
                "premiered exhibited published composed filmed celebrated",
                "festival novel exhibition film concert painting award stage audience album script theatre"),
    "health": ("doctors patients hospital nurses surgeon clinic pharmacist virologist ministry researchers",
               "treated vaccinated diagnosed prescribed tested warned",
               "vaccine drug therapy infection surgery trial diet symptoms epidemic study insurance injury"),
    "politics": ("minister senator parliament mayor opposition president council ministry voters committee",
                 "voted debated rejected campaigned negotiated warned",
                 "election reform budget law treaty tax coalition referendum speech border contract scandal"),
    "science": ("researchers astronomers physicists laboratory biologist university geologists team professor "
                "chemist",
                "discovered measured observed simulated published tested",
                "telescope particle fossil genome study experiment planet molecule data species satellite trial"),
    "sports": ("coach team striker goalkeeper champion referee athletes club sprinter captain",
               "scored defended trained defeated celebrated competed",
               "match season stadium medal league tournament injury final transfer contract fans record"),
    "technology": ("engineers developers startup hackers programmer company users designer laboratory robot",
                   "launched encrypted upgraded programmed designed hacked",
                   "software chip network data phone battery app satellite server update camera market"),
    "weather": ("forecasters residents farmers meteorologists sailors firefighters commuters council pilots "
                "observers",
                "evacuated predicted flooded measured sheltered warned",
                "storm rain heatwave snow wind flood harvest temperature drought record fog coast"),
}
LABELS = sorted(_WORDS)
_SHARED = ("officials people experts witnesses reporters neighbours",
           "said announced expected reported confirmed discussed",
           "plan report week country region project meeting decision question change result group")
_TITLES = ("{who} and the {what}", "{what}: what {who} {did}", "why {who} {did} the "
                                                               "{what}", "new {what} for {who}")
_SENTENCES = (
    "the {who} {did} the {what} on {day}.", "after the {what}, {who} {did} and spoke of the {what}.",
    "{who} from {place} {did} what they called the {what}.", "in {place} the {what} and the {what} {did} {who}.",
    "\"the {what} is larger than the {what}\", the {who} said.", "nobody {did} until the {who} saw the {what}.")
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_PLACES = "the north,the capital,the valley,the old town,the islands,the south".split(",")


def story(seed, index):
    """(text, category) of one story: a title and two to four sentences."""
    rng = np.random.default_rng([seed, index])
    own, mixed = (LABELS[number] for number in rng.choice(len(LABELS), 2, replace=False))

    def word(kind):
        draw = rng.random()
        words = _WORDS[own] if draw < OWN else _WORDS[mixed] if draw < OWN + MIXED else _SHARED
        return rng.choice(words[kind].split())

    def fill(template):
        for slot, make in (("{who}", lambda: word(0)), ("{did}", lambda: word(1)), ("{what}", lambda: word(2)),
                           ("{day}", lambda: rng.choice(_DAYS)), ("{place}", lambda: rng.choice(_PLACES))):
            while slot in template:
                template = template.replace(slot, make(), 1)
        return template[0].upper() + template[1:]

    title = fill(rng.choice(_TITLES))
    sentences = [fill(rng.choice(_SENTENCES)) for _ in range(rng.integers(2, 5))]
    return f"{title}. {' '.join(sentences)}", own
