"""The built-in example: two source domains and a target, drawn from a seed.

Every item has a value in each *facet*. Theme, material and occasion are words of its title; colour and pattern are
seen in its picture alone; its role (tools, storage, ...) is its category. A user has a taste in every facet, which
drifts: it moves to a neighbouring value, or takes over the value of the item just chosen. The next item is drawn by
how well it meets the taste, by how well its role follows the last item's, and by its popularity. Facets, words,
neighbourhoods and role transitions are the same in all three domains, so what is learned of them transfers; items,
brands' shares, users and product names are each domain's own.

The sequences are short and popularity is long-tailed, so a model of item ids sees most items a handful of times and
cannot learn what words and pictures tell at once.

The same seed gives the same bytes on any machine: the generator's raw 64-bit stream is the only randomness, every
weight is an integer, and pictures are stored uncompressed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ckd.data.domain import Domain, columns, leave_one_out
from ckd.data.paint import COLOURS, PATTERNS, SIDE, paint, png
from ckd.errors import ConfigError

Ints = npt.NDArray[np.int64]

SOURCES = ("example-kitchen", "example-garden")
TARGET = "example-studio"

#: Raised when the same seed gives other bytes than before.
RECIPE = 1

#: Each facet's values in a ring: neighbours are alike. The words of one value are its synonyms.
THEMES = (
    ("Nautical", "Harbour", "Anchor", "Sailor"),
    ("Coral", "Ocean", "Seashell", "Lagoon"),
    ("Tropical", "Palm", "Parrot", "Jungle"),
    ("Floral", "Rose", "Peony", "Blossom"),
    ("Meadow", "Daisy", "Bumblebee", "Clover"),
    ("Forest", "Fern", "Acorn", "Woodland"),
    ("Alpine", "Mountain", "Edelweiss", "Chalet"),
    ("Nordic", "Fjord", "Reindeer", "Snowflake"),
    ("Celestial", "Moon", "Starlight", "Galaxy"),
    ("Robot", "Rocket", "Spaceship", "Cosmonaut"),
    ("Industrial", "Factory", "Loft", "Workshop"),
    ("Art Deco", "Gatsby", "Jazz", "Ballroom"),
)
MATERIALS = (
    ("Oak", "Walnut"),
    ("Bamboo", "Rattan"),
    ("Linen", "Cotton"),
    ("Felt", "Wool"),
    ("Leather", "Suede"),
    ("Steel", "Iron"),
    ("Glass", "Crystal"),
    ("Ceramic", "Porcelain"),
)
OCCASIONS = (
    ("for Kids", "for Children", "for Toddlers"),
    ("for Parties", "for Birthdays", "for Celebrations"),
    ("for Travel", "for Camping", "for Road Trips"),
    ("for the Office", "for Work", "for Professionals"),
    ("for Beginners", "Starter", "Made Easy"),
    ("Gift Edition", "in Gift Box", "Collector's"),
)
ROLES = ("Tools", "Storage", "Lighting", "Textiles", "Decor", "Care")
#: The roles that tend to follow each role.
FOLLOWS = ((1, 5), (2, 3), (4, 1), (4, 5), (2, 0), (0, 3))

#: What a domain sells: two products to a role.
PRODUCTS = {
    "example-kitchen": (
        *("Whisk", "Bread Knife", "Spice Jar", "Lunch Box", "Counter Lamp", "Tea Light"),
        *("Apron", "Tea Towel", "Fruit Bowl", "Wall Clock", "Dish Brush", "Cutting Board Oil"),
    ),
    "example-garden": (
        *("Hand Trowel", "Pruning Shears", "Seed Box", "Tool Shed Rack", "Path Lantern", "String Lights"),
        *("Seat Cushion", "Picnic Blanket", "Planter", "Bird Bath", "Watering Can", "Plant Food"),
    ),
    "example-studio": (
        *("Paint Brush", "Carving Set", "Pencil Case", "Bead Organiser", "Desk Lamp", "Light Pad"),
        *("Yarn Bundle", "Quilting Fabric", "Picture Frame", "Sticker Pack", "Brush Cleaner", "Varnish"),
    ),
}
BRANDS = (
    *("Alder & Finch", "Bellweather", "Copperline", "Driftmark", "Eastbrook", "Fennimore", "Gladwell", "Hearthside"),
    *("Ivory Lane", "Juniper Road", "Kestrel", "Lumen & Loam", "Marlow", "Northlight", "Ostrava", "Pennywhistle"),
    *("Quillon", "Rookery", "Saltbox", "Thistledown", "Umberto", "Verdigris", "Wickham", "Yarrow"),
)
#: Words of a title that say nothing of taste.
FILLERS = ("Classic", "Premium", "Everyday", "Original", "Compact", "Large", "New", "Deluxe", "Handy", "Signature")

#: Facets by their number of values, and what meeting the taste adds to an item's log-weight, in quarters.
FACETS = (len(THEMES), len(MATERIALS), len(OCCASIONS), len(COLOURS), PATTERNS)
MATCH = (14, 10, 6, 10, 6)
NEIGHBOUR = (6, 2, 1, 4, 0)
FOLLOW = 7
#: exp(quarters / 4) in 1/256, an integer.
WEIGHTS = np.array([round(256 * math.exp(quarter / 4)) for quarter in range(sum(MATCH) + FOLLOW + 1)], dtype=np.int64)

#: Chances, in percent, unless said otherwise.
EXPLORE = 8  # an item is chosen by popularity alone
DRIFT = 10  # a taste moves to a neighbouring value
DISCOVER = 15  # a taste takes the value of the item just chosen
LOYAL = 60  # a brand's item has the brand's theme, or material
NO_IMAGE = 12
NO_BRAND = 6
NO_DESCRIPTION = 15

#: Users times items that are weighed at a time.
CELLS = 2**22

MIN_LENGTH = 5
MAX_LENGTH = 50


@dataclass(frozen=True)
class ExampleSize:
    """How large each of the three domains is.

    Attributes:
        users: number of users.
        items: number of items in the catalogue; a few may end up without any interaction.
        mean_length: average number of interactions of a user, above the least of 5.
    """

    users: int = 2000
    items: int = 1200
    mean_length: float = 8.0

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ConfigError(f"example: users={self.users}: at least 1.")
        if self.items < 2 * MIN_LENGTH:
            raise ConfigError(f"example: items={self.items}: at least {2 * MIN_LENGTH}, so that users can choose.")
        if not MIN_LENGTH < self.mean_length <= MAX_LENGTH / 2:
            raise ConfigError(
                f"example: mean_length={self.mean_length}: more than {MIN_LENGTH} and at most {MAX_LENGTH // 2}."
            )


DEFAULT = ExampleSize()
TINY = ExampleSize(users=60, items=40, mean_length=7.0)


class _Draws:
    """Random numbers from PCG64's raw stream, which numpy keeps stable across versions (unlike `Generator`'s)."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def unit(self, n: int) -> npt.NDArray[np.float64]:
        """(n,) multiples of 2**-53 in [0, 1)."""
        raw = np.asarray(self._bits.random_raw(n), dtype=np.uint64)
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, bound: int | Ints, n: int) -> Ints:
        """(n,) integers in [0, bound)."""
        return (self.unit(n) * bound).astype(np.int64)

    def chance(self, percent: int, n: int) -> npt.NDArray[np.bool_]:
        """(n,) True in `percent` of a hundred cases."""
        return self.below(100, n) < percent

    def order(self, n: int) -> Ints:
        """A permutation of n."""
        return np.argsort(np.asarray(self._bits.random_raw(n), dtype=np.uint64), kind="stable")


@dataclass(frozen=True)
class _Catalogue:
    """Items of one domain: `facets` (n, 5) values, `products` (n,), `brands` (n,), `popularity` (n,) weights."""

    facets: Ints
    products: Ints
    brands: Ints
    popularity: Ints

    @property
    def roles(self) -> Ints:
        return self.products // 2


def make_example(seed: int = 2024, size: ExampleSize = DEFAULT) -> dict[str, Domain]:
    """The two source domains and the target, by name, sources first.

    Args:
        seed: from 0; the same seed and size give the same bytes on any machine.
        size: users, items and length of each domain.

    Raises:
        ConfigError: the seed is negative.
    """
    if seed < 0:
        raise ConfigError(f"example: seed={seed}: at least 0.")
    return {name: _make_domain(name, number, seed, size) for number, name in enumerate((*SOURCES, TARGET))}


def _make_domain(name: str, number: int, seed: int, size: ExampleSize) -> Domain:
    catalogue = _draw_catalogue(_Draws(seed, number, 0), size.items)
    indptr, chosen = _draw_sequences(_Draws(seed, number, 1), catalogue, size)
    short = name.removeprefix("example-")
    table = pl.DataFrame(
        {
            columns.ITEM: np.arange(1, size.items + 1, dtype=np.int32),
            columns.RAW: [f"{short}-{i:05d}" for i in range(size.items)],
            **_describe(_Draws(seed, number, 2), catalogue, name),
            columns.IMAGE: _draw_pictures(_Draws(seed, number, 3), catalogue),
        }
    )
    return Domain(
        name=name,
        indptr=indptr,
        items=(chosen + 1).astype(np.int32),
        split=leave_one_out(indptr),
        item_table=table,
        user_ids=pl.Series(columns.RAW, [f"{short}-user-{u:05d}" for u in range(size.users)]),
        history_cap=MAX_LENGTH,
        notes={"source": "example", "recipe": RECIPE, "seed": seed, "size": asdict(size)},
    )


def _draw_catalogue(draws: _Draws, n: int) -> _Catalogue:
    facets = np.stack([draws.below(values, n) for values in FACETS], axis=1)
    brands = draws.below(len(BRANDS), n)
    # A brand has a theme and a material, the same in every domain, so its name is a hint.
    for facet, of_brand in ((0, np.arange(len(BRANDS)) % FACETS[0]), (1, np.arange(len(BRANDS)) % FACETS[1])):
        facets[:, facet] = np.where(draws.chance(LOYAL, n), of_brand[brands], facets[:, facet])
    # Zipf's law with exponent 1/2 in whole numbers: 2**20 / sqrt(rank). Tastes bend it further.
    weights = [2**28 // math.isqrt(2**16 * rank) for rank in range(1, n + 1)]
    popularity = np.empty(n, dtype=np.int64)
    popularity[draws.order(n)] = weights
    return _Catalogue(facets, draws.below(2 * len(ROLES), n), brands, popularity)


def _affinities() -> list[Ints]:
    """For each facet (values, values): quarters that an item's value (column) earns under a taste (row)."""
    tables = []
    for values, match, neighbour in zip(FACETS, MATCH, NEIGHBOUR, strict=True):
        step = np.abs(np.arange(values)[:, None] - np.arange(values))
        step = np.minimum(step, values - step)
        tables.append(np.where(step == 0, match, np.where(step == 1, neighbour, 0)))
    return tables


def _draw_lengths(draws: _Draws, size: ExampleSize) -> Ints:
    """(users,) lengths: 5 and a geometric tail, at most 50 and at most half of the items."""
    extra = size.mean_length - MIN_LENGTH
    go_on = extra / (1 + extra)
    longest = min(MAX_LENGTH, max(MIN_LENGTH, size.items // 2))
    lengths = np.full(size.users, MIN_LENGTH)
    growing = np.ones(size.users, dtype=bool)
    for _ in range(longest - MIN_LENGTH):
        growing &= draws.unit(size.users) < go_on
        lengths += growing
    return lengths


def _draw_sequences(draws: _Draws, catalogue: _Catalogue, size: ExampleSize) -> tuple[Ints, Ints]:
    """`indptr` and the chosen items from 0, user after user; nobody chooses an item twice."""
    lengths = _draw_lengths(draws, size)
    # Some users at a time: memory does not grow with users times items.
    group = max(1, CELLS // size.items)
    chosen = [_walk(draws, catalogue, lengths[first : first + group]) for first in range(0, size.users, group)]
    return np.concatenate([[0], np.cumsum(lengths)]), np.concatenate(chosen)


def _walk(draws: _Draws, catalogue: _Catalogue, lengths: Ints) -> Ints:
    """(sum of lengths,) the items that users with these sequence lengths choose, user after user."""
    n, longest = len(lengths), int(lengths.max())
    tastes = np.stack([draws.below(values, n) for values in FACETS], axis=1)
    # (taste or last role) x items, in float32: sums of small integers are exact whatever the order of addition.
    earned = [table[:, catalogue.facets[:, f]].astype(np.float32) for f, table in enumerate(_affinities())]
    follows = np.zeros((len(ROLES) + 1, len(ROLES)), dtype=np.float32)
    for before, successors in enumerate(FOLLOWS):
        follows[before, list(successors)] = FOLLOW
    after = follows[:, catalogue.roles]
    chosen = np.zeros((n, longest), dtype=np.int64)
    seen = np.zeros((n, len(catalogue.popularity)), dtype=bool)
    role = np.full(n, len(ROLES))
    for step in range(longest):
        users = np.flatnonzero(lengths > step)
        quarters = after[role[users]]
        for f in range(len(FACETS)):
            quarters += earned[f][tastes[users, f]]
        quarters[draws.chance(EXPLORE, len(users))] = 0
        weights = WEIGHTS[quarters.astype(np.int64)] * catalogue.popularity
        weights[seen[users]] = 0
        reached = np.cumsum(weights, axis=1)
        mark = draws.below(reached[:, -1], len(users))
        item = (reached <= mark[:, None]).sum(axis=1)
        chosen[users, step] = item
        seen[users, item] = True
        role[users] = catalogue.roles[item]
        tastes[users] = _drift(draws, tastes[users], catalogue.facets[item])
    return chosen[np.arange(longest) < lengths[:, None]]


def _drift(draws: _Draws, tastes: Ints, last: Ints) -> Ints:
    """(n, 5) the tastes after a choice of items with the facets `last` (n, 5)."""
    n = len(tastes)
    facet = draws.below(len(FACETS), n)
    rows = np.arange(n)
    tastes = tastes.copy()
    discovers = draws.chance(DISCOVER, n)
    tastes[rows, facet] = np.where(discovers, last[rows, facet], tastes[rows, facet])
    facet = draws.below(len(FACETS), n)
    step = np.where(draws.chance(DRIFT, n), 1 - 2 * draws.below(2, n), 0)
    tastes[rows, facet] = (tastes[rows, facet] + step) % np.array(FACETS)[facet]
    return tastes


def _describe(draws: _Draws, catalogue: _Catalogue, domain: str) -> dict[str, list[str | None]]:
    """The text columns: the title, brand, category and description, and the text that joins them."""
    n = len(catalogue.products)
    spoken = [
        [values[v][w % len(values[v])] for v, w in zip(catalogue.facets[:, f], draws.below(12, n), strict=True)]
        for f, values in enumerate((THEMES, MATERIALS, OCCASIONS))
    ]
    nameless, bare = draws.chance(NO_BRAND, n), draws.chance(NO_DESCRIPTION, n)
    table: dict[str, list[str | None]] = {
        name: [] for name in (columns.TEXT, "title", "brand", "category", "description")
    }
    department = domain.removeprefix("example-").title()
    for i, filler in enumerate(draws.below(len(FILLERS), n)):
        theme, material, _ = catalogue.facets[i, :3]
        product = PRODUCTS[domain][catalogue.products[i]]
        row = {
            "title": f"{FILLERS[filler]} {spoken[0][i]} {product} in {spoken[1][i]} {spoken[2][i]}",
            "brand": None if nameless[i] else BRANDS[catalogue.brands[i]],
            "category": f"{department} {ROLES[catalogue.roles[i]]}",
            "description": None if bare[i] else f"{THEMES[theme][0]} design, made of {MATERIALS[material][0].lower()}.",
        }
        row[columns.TEXT] = " ".join(part for part in row.values() if part)
        for name, value in row.items():
            table[name].append(value)
    return table


def _draw_pictures(draws: _Draws, catalogue: _Catalogue) -> list[bytes | None]:
    """PNG bytes of each item's picture, None for a share of the items."""
    n = len(catalogue.products)
    missing = draws.chance(NO_IMAGE, n)
    dx, dy = draws.below(7, n) - 3, draws.below(7, n) - 3
    light = draws.below(41, n) - 20
    pictures: list[bytes | None] = []
    for i in range(n):
        noise = draws.below(17, SIDE * SIDE).reshape(SIDE, SIDE) - 8
        colour, pattern = catalogue.facets[i, 3:]
        picture = paint(
            int(catalogue.roles[i]), int(colour), int(pattern), (int(dx[i]), int(dy[i])), int(light[i]), noise
        )
        pictures.append(None if missing[i] else png(picture))
    return pictures
