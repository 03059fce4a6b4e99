"""Bounds of the options that several commands have: beyond them, a value is a slip, or overflows in float32 or fp16."""

TEMPERATURE = dict(least=0.01, most=1000)  # below, a softmax is an argmax and its gradient overflows fp16
WEIGHT = dict(least=0, most=1000)  # of a loss
DROPOUT = dict(least=0, most=0.9)  # 1 - p rounds to 0 in float32 near 1
LR = dict(least=1e-12, most=10)  # below, no float32 weight changes; above, AdamW leaves every scale of a weight
WEIGHT_DECAY = dict(least=0, most=10)  # AdamW shrinks a weight by lr times it
CLIP = dict(least=1e-6, most=1e9)  # below, AdamW's epsilon outweighs the gradient; above, nothing is clipped
SEED = dict(least=0, most=2**62)  # seeds are added to in 64 bits
