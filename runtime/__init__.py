"""Runs a bundle; never imports PyTorch. A prompt becomes a picture on this way:

`model.Model.draw` (`generate` is the same at once) -> `intake/job.py` makes tokens of the words -> `decoding/schedule.py`
shares passes among answers -> `decoding/stream.py` begins an answer, `decoding/loop.py` takes it token by token -> a feed
says what a pass is fed: `decoding/ahead.py` with guesses, the default of `native`; `decoding/feed.py` without ->
`engines/native.py` computes it (`csrc/cpu/decoder.cpp`) -> `sampling/sampler.py` draws a code of the logits and the seed ->
`results/presenter.py` decodes the codes' pixels (`engines/graphs.py`) and notes how they were drawn ->
`results/metadata.py` saves both.
"""
