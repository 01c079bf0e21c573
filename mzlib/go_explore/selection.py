"""Which cell to return to: the weights of cells by three published rules, and a sum tree that draws by them."""

import numpy as np

LEVEL_FACTORS = 0.1 ** np.arange(256.0)  # for a level so many below the highest reached
KEY_BONUS = 1.0
# Ecoffet et al. 2019, appendix "Cell selection": (column, weight w_a), powers 1/2, epsilons. Two figures are uncertain:
# the paper's table gives `seen` 0.3 and the released script for cells without domain knowledge 3.0.
COUNTS_2019 = (("chosen", 0.1), ("chosen_since_new", 0.0), ("seen", 0.3))
EPSILON_1, EPSILON_2 = 0.001, 0.00001


class SumTree:
    """Weights of cells under a binary tree of their sums: O(log n) to change one and to draw one.

    Every sum is that of its two parts, computed afresh, so the tree depends on the weights alone and not on the order
    in which they were set: a search that was resumed draws as the one that never stopped.
    """

    def __init__(self, weights: np.ndarray):
        """weights: (cells,) float64, none negative, not all 0."""
        self.leaves = 1 << max(len(weights) - 1, 1).bit_length()
        self.sums = np.zeros(2 * self.leaves)
        self.sums[self.leaves : self.leaves + len(weights)] = weights
        level = self.leaves
        while level > 1:
            below = self.sums[level : 2 * level]
            level //= 2
            self.sums[level : 2 * level] = below[0::2] + below[1::2]

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self.sums[1])

    def set(self, cells: np.ndarray, weights: np.ndarray) -> None:
        """Set the weights of distinct cells; cells: (n,) int, below the number of leaves. weights: (n,)."""
        nodes = cells + self.leaves
        self.sums[nodes] = weights
        while len(nodes) and nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self.sums[nodes] = self.sums[2 * nodes] + self.sums[2 * nodes + 1]

    def draw(self, uniform: np.ndarray) -> np.ndarray:
        """(n,) cells for n numbers in [0, 1): the cell within whose part of the running sum each number falls.

        A cell of weight 0 is never drawn, however the sums round.
        """
        nodes, rest = np.ones(len(uniform), np.int64), uniform * self.sums[1]
        while nodes[0] < self.leaves:
            nodes = 2 * nodes
            left = self.sums[nodes]
            right = (rest >= left) & (self.sums[nodes + 1] > 0)
            rest = np.where(right, rest - left, rest)
            nodes = nodes + right
        return nodes - self.leaves


def seen_weights(archive, cells: np.ndarray) -> np.ndarray:
    """1 / sqrt(seen + 1) (Ecoffet et al. 2021, Methods)."""
    return 1 / np.sqrt(archive.columns["seen"][cells] + 1.0)


def weights_2019(archive, cells: np.ndarray) -> np.ndarray:
    """1 + the sum over counts a of w_a (1 / (v_a + eps_1))^(1/2) + eps_2 (Ecoffet et al. 2019, appendix).

    Counts: times chosen, times chosen since that led to a new or better cell, times seen; all begin again when the
    cell improves.
    """
    weights = np.ones(len(cells))
    for name, factor in COUNTS_2019:
        weights += factor / np.sqrt(archive.columns[name][cells] + EPSILON_1) + EPSILON_2
    return weights


class ByCounts:
    """A rule by which a cell's weight follows from its own counts."""

    def __init__(self, weights):
        self.weights = weights

    def add(self, archive, cell: int) -> list[int]:
        """Cells whose weight changes with the new cell."""
        return [cell]


class ByDomain:
    """0.1^(L - l) (W + (2 - h)/10 + k): W the seen weight, l the cell's level and L the highest in the archive, h the
    number of cells beside it, k 1 if no cell at its place holds more keys (Ecoffet et al. 2021, Methods).

    For cells (level, keys, room, x, y), perhaps with more after these, which is then the same in a neighbour and in the
    cell with more keys. Neighbours are looked for in the same room only. k = 1 is uncertain: the paper's text could not
    be checked; the 2019 settings weigh it 10.
    """

    def __init__(self):
        self.levels = np.zeros(64, np.int64)
        self.bonuses = np.zeros(64)
        self.top = 0
        self.most_keys = 0

    def add(self, archive, cell: int) -> list[int]:
        """Cells whose weight the new cell changes: neighbours, those with fewer keys, or all at a new level."""
        if cell >= len(self.levels):
            self.levels, self.bonuses = (
                np.concatenate([old, np.zeros_like(old)]) for old in (self.levels, self.bonuses)
            )
        level, keys, room, x, *rest = archive.keys[cell]
        self.levels[cell], self.most_keys = level, max(self.most_keys, keys)
        around = [bytes((level, keys, room, beside, *rest)) for beside in (x - 1, x + 1) if 0 <= beside < 256]
        around += [bytes((level, fewer, room, x, *rest)) for fewer in range(keys)]
        changed = [cell, *(archive.index[key] for key in around if archive.index.get(key, cell) < cell)]
        for one in changed:
            self.bonuses[one] = self.bonus(archive, archive.keys[one])
        if level > self.top:
            self.top = level
            return list(range(cell + 1))
        return changed

    def bonus(self, archive, key: bytes) -> float:
        """(2 - h)/10 + k of a cell."""
        level, keys, room, x, *rest = key
        beside = [bytes((level, keys, room, other, *rest)) for other in (x - 1, x + 1) if 0 <= other < 256]
        neighbours = sum(other in archive.index for other in beside)
        more = (bytes((level, number, room, x, *rest)) for number in range(keys + 1, self.most_keys + 1))
        return (2 - neighbours) / 10 + KEY_BONUS * (not any(other in archive.index for other in more))

    def weights(self, archive, cells: np.ndarray) -> np.ndarray:
        """(n,) weights of cells."""
        return LEVEL_FACTORS[self.top - self.levels[cells]] * (seen_weights(archive, cells) + self.bonuses[cells])


RULES = {
    "seen": lambda: ByCounts(seen_weights),
    "counts": lambda: ByCounts(weights_2019),
    "domain": ByDomain,
}


class Selector:
    """Draws cells of an archive by a rule; the archive says which cells have changed."""

    def __init__(self, rule: str):
        """rule: one of RULES."""
        self.rule = RULES[rule]()
        self.known = 0  # cells that the rule has met
        self.changed: list[int] = []
        self.tree: SumTree | None = None

    def draw(self, archive, uniform: np.ndarray) -> np.ndarray:
        """(n,) cells for n numbers in [0, 1)."""
        for cell in range(self.known, len(archive)):
            self.changed += self.rule.add(archive, cell)
        self.known = len(archive)
        if self.tree is None or len(archive) > self.tree.leaves:
            self.tree = SumTree(self.rule.weights(archive, np.arange(len(archive))))
        elif self.changed:
            cells = np.unique(np.array(self.changed, np.int64))
            self.tree.set(cells, self.rule.weights(archive, cells))
        self.changed = []
        return self.tree.draw(uniform)
