"""Which images the notebooks walk on."""

from cfgdistill.data.named import has_cifar10


def at_hand() -> str:
    """The data set to take: "cifar10" where it is on this disk, else "digits"."""
    return "cifar10" if has_cifar10() else "digits"


def why(dataset: str) -> str:
    """Which data set a notebook took, and why, in a sentence."""
    here = has_cifar10()
    if dataset == "cifar10":
        where = "is on this disk" if here else "you chose; it is fetched once, 150 MB"
        return f"This notebook walks on CIFAR-10, which {where}."
    if dataset == "digits" and not here:
        return (
            "This notebook walks on digits, which come with scikit-learn: CIFAR-10 is not on this "
            'disk. (dataset = "cifar10" fetches it once, 150 MB, and its pictures show more.)'
        )
    return f"This notebook walks on {dataset}, which you chose."
