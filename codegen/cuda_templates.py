"""All templates of the GPU; importing this module registers them."""

ALL = ("none",)
