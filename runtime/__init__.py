"""Runs a bundle; never imports PyTorch. A prompt becomes a picture on this way:

`model.Model.generate` checks the settings -> `intake/job.py` makes tokens of the words -> `decoding/schedule.py` shares
passes among answers -> `decoding/loop.py` takes an answer token by token, `decoding/feed.py` says what a pass is fed ->
`engines/native.py` computes it (`csrc/cpu/decoder.cpp`) -> `sampling/sampler.py` draws a code of the logits ->
`results/presenter.py` decodes the codes' pixels and notes how they were drawn.
"""
