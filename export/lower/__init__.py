"""How a checkpoint is written for an engine (`lowering`): `native`, `cpu`, `cuda`, `tensorrt`, `tensorrt10`."""
