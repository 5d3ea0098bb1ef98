"""CycleGAN: pictures of one domain repainted as pictures of another, learnt without pairs; face swap."""

import common  # noqa: F401  loads TensorFlow quietly before any file of this folder does
