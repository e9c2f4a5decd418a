"""The paper's own figures: arXiv 2401.00797v2, Tables 2 to 5, and PRM-KD of its first version."""

from __future__ import annotations

from dataclasses import dataclass

#: Columns of Tables 3 and 4, as we print them.
METHODS = ("UniSRec", "Recformer", "UniM²Rec", "GRU4Rec", "SASRec", "BERT4Rec", "RecGURU", "HetComp", "CKD-MDSR")
METRICS = ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20")

#: Domains of ours that are the paper's by name, in lower case, and what the paper calls them.
DOMAINS = {
    "instruments": "Instruments",
    "toys": "Toys",
    "scientific": "Scientific",
    "arts": "Arts",
    "games": "Games",
}


@dataclass(frozen=True)
class Statistics:
    """A row of Table 2; the sparsity is a share."""

    users: int
    items: int
    interactions: int
    average_length: float
    sparsity: float


TABLE_2 = {
    "Instruments": Statistics(24_962, 9_749, 207_926, 8.37, 0.9993),
    "Toys": Statistics(18_436, 10_986, 163_837, 8.34, 0.9994),
    "Scientific": Statistics(11_041, 5_327, 76_896, 6.96, 0.9999),
    "Arts": Statistics(45_486, 21_019, 395_150, 8.69, 0.9996),
    "Games": Statistics(10_235, 14_798, 98_374, 9.03, 0.9989),
}

#: Tables 3 and 4: for each domain the metrics in the order of METRICS, each with its methods in the order of METHODS.
_TABLE_3 = {
    "Instruments": """
        0.0840 0.0835 0.0978 0.0677 0.0860 0.0892 0.0865 0.0879 0.0954
        0.1104 0.1061 0.1289 0.0843 0.0979 0.1098 0.1082 0.0986 0.1089
        0.1473 0.1395 0.1697 0.1093 0.1483 0.1572 0.1374 0.1497 0.1593
        0.0548 0.0629 0.0635 0.0496 0.0526 0.0553 0.0594 0.0565 0.0597
        0.0623 0.0825 0.0759 0.0549 0.0635 0.0631 0.0699 0.0674 0.0757
        0.0717 0.0917 0.0842 0.0612 0.0703 0.0719 0.0811 0.0757 0.0814
    """,
    "Toys": """
        0.1007 0.1123 0.1053 0.0757 0.0795 0.0694 0.0742 0.0821 0.0884
        0.1260 0.1341 0.1247 0.0903 0.0979 0.0829 0.0936 0.0995 0.1163
        0.1539 0.1574 0.1601 0.1082 0.1184 0.0988 0.1121 0.1209 0.1291
        0.0664 0.0712 0.0692 0.0617 0.0632 0.0560 0.0656 0.0647 0.0703
        0.0745 0.0943 0.0901 0.0664 0.0693 0.0604 0.0679 0.0727 0.0784
        0.0816 0.0993 0.0989 0.0709 0.0746 0.0644 0.0763 0.0771 0.0819
    """,
    "Scientific": """
        0.0884 0.0875 0.0907 0.0373 0.0735 0.0614 0.0697 0.0723 0.0754
        0.1215 0.1391 0.1249 0.0588 0.1064 0.0880 0.0894 0.0989 0.1231
        0.1674 0.1695 0.1723 0.0843 0.1408 0.1221 0.1157 0.1428 0.1534
        0.0553 0.0589 0.0594 0.0242 0.0457 0.0387 0.0513 0.0503 0.0534
        0.0668 0.0764 0.0895 0.0311 0.0549 0.0443 0.0581 0.0570 0.0627
        0.0781 0.0979 0.1012 0.0376 0.0635 0.0502 0.0642 0.0614 0.0715
    """,
    "Arts": """
        0.0905 0.1053 0.0917 0.0565 0.0804 0.0782 0.0797 0.0793 0.0879
        0.1239 0.1474 0.1304 0.0763 0.1108 0.1039 0.1021 0.1089 0.1272
        0.1665 0.1702 0.1673 0.1028 0.1403 0.1354 0.1320 0.1407 0.1490
        0.0570 0.0658 0.0639 0.0405 0.0484 0.0465 0.0621 0.0474 0.0495
        0.0682 0.0797 0.0729 0.0469 0.0587 0.0541 0.0693 0.0592 0.0695
        0.0786 0.0963 0.0802 0.0535 0.0654 0.0625 0.0768 0.0685 0.0729
    """,
    "Games": """
        0.0654 0.0631 0.0679 0.0519 0.0588 0.0567 0.0532 0.0573 0.0595
        0.1021 0.1046 0.1084 0.0844 0.0993 0.0974 0.0951 0.0980 0.1097
        0.1670 0.1598 0.1705 0.1324 0.1516 0.1504 0.1403 0.1492 0.1529
        0.0366 0.0384 0.0372 0.0335 0.0317 0.0321 0.0341 0.0323 0.0348
        0.0504 0.0569 0.0527 0.0439 0.0445 0.0439 0.0462 0.0451 0.0485
        0.0651 0.0695 0.0673 0.0560 0.0578 0.0557 0.0591 0.0569 0.0614
    """,
}

#: The improvement of CKD-MDSR over SASRec as Tables 3 and 4 print it, in percent, in the order of METRICS.
_IMPROVEMENT = {
    "Instruments": (10.93, 11.24, 7.42, 13.50, 19.21, 15.79),
    "Toys": (11.19, 18.79, 9.04, 11.23, 13.13, 9.79),
    "Scientific": (2.59, 15.70, 8.95, 16.85, 14.21, 12.60),
    "Arts": (9.33, 14.80, 6.20, 2.27, 18.40, 11.47),
    "Games": (1.19, 10.47, 0.86, 9.78, 8.99, 6.23),
}

#: Table 5: memory and time of serving, as multiples of SASRec's.
TABLE_5 = {
    "Scientific": {
        "SASRec": (1.0, 1.0),
        "UniSRec": (48.3, 1.8),
        "Recformer": (78.0, 2.9),
        "UniM²Rec": (59.8, 2.0),
        "CKD-MDSR": (1.0, 1.0),
    },
    "Arts": {
        "SASRec": (1.0, 1.0),
        "UniSRec": (51.5, 1.9),
        "Recformer": (81.7, 3.1),
        "UniM²Rec": (64.3, 2.1),
        "CKD-MDSR": (1.0, 1.0),
    },
}

#: PRM-KD as the first version's Table 3 has it, on the same data; in the order of METRICS.
_PRM_KD = {
    "Instruments": (0.0954, 0.1089, 0.1593, 0.0597, 0.0757, 0.0814),
    "Toys": (0.0884, 0.1163, 0.1291, 0.0703, 0.0784, 0.0819),
    "Scientific": (0.0754, 0.1231, 0.1534, 0.0534, 0.0627, 0.0715),
    "Arts": (0.0879, 0.1272, 0.1490, 0.0495, 0.0695, 0.0729),
    "Games": (0.0569, 0.1089, 0.1521, 0.0351, 0.0474, 0.0609),
}


def name_of(domain: str) -> str | None:
    """What the paper calls a domain of ours; None where it is none of its five."""
    return DOMAINS.get(domain.lower())


def metrics_of(domain: str, method: str) -> dict[str, float]:
    """The paper's test metrics of a method on a domain of ours, by metric; empty where it has none."""
    name = name_of(domain)
    if name is None:
        return {}
    if method == "PRM-KD":
        return dict(zip(METRICS, _PRM_KD[name], strict=True))
    if method not in METHODS:
        return {}
    values = [float(each) for each in _TABLE_3[name].split()]
    return dict(zip(METRICS, values[METHODS.index(method) :: len(METHODS)], strict=True))


def improvement_of(domain: str) -> dict[str, float]:
    """The improvement of CKD-MDSR over SASRec that the paper prints, as a share, by metric; empty where it has none."""
    name = name_of(domain)
    return {} if name is None else {m: p / 100 for m, p in zip(METRICS, _IMPROVEMENT[name], strict=True)}


def statistics_of(domain: str) -> Statistics | None:
    """The paper's Table 2 of a domain of ours."""
    name = name_of(domain)
    return None if name is None else TABLE_2[name]


def serving_of(domain: str) -> dict[str, tuple[float, float]]:
    """The paper's Table 5 of a domain of ours: (memory, time) by method; empty where it has none."""
    return TABLE_5.get(name_of(domain) or "", {})
