"""The stack of blocks that both backbones are made of."""

from torch import nn

from mzlib.layers import AttentionBlock, HawkBlock


def check_blocks(config) -> None:
    """ValueError for sizes of a stack of blocks that don't go together."""
    if config.mixer not in ("transformer", "hawk"):
        raise ValueError(f"mixer={config.mixer!r}: use transformer or hawk")
    if not 0 < config.layer < config.depth:
        raise ValueError(f"layer={config.layer}: with depth={config.depth} it must be 1 to {config.depth - 1}")
    if config.width % config.heads:
        raise ValueError(f"width={config.width}: must be a multiple of heads={config.heads}")


def blocks_of(config) -> nn.ModuleList:
    """`depth` blocks of the configuration's kind and size."""
    if config.mixer == "hawk":
        sizes = config.width, config.width, config.heads, config.mlp_width
        return nn.ModuleList(HawkBlock(*sizes) for _ in range(config.depth))
    sizes = config.width, config.heads, config.mlp_width, config.window
    return nn.ModuleList(AttentionBlock(*sizes) for _ in range(config.depth))
