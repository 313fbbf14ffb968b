"""Runs a bundle; never imports PyTorch. A prompt becomes a picture on this way:

- `model.Model.draw` (`generate` waits for its end) checks the settings; `intake/job.py` makes tokens of the words;
- `decoding/schedule.py` shares passes among answers; `decoding/stream.py` begins an answer, `decoding/loop.py` takes it
  token by token; a feed says what a pass is fed: `decoding/ahead.py` with guesses, which `native` does unless told
  otherwise, `decoding/feed.py` without;
- `engines/native.py` computes the pass (`csrc/cpu/decoder.cpp`); `sampling/sampler.py` draws a code of its logits;
- `results/presenter.py` decodes the codes' pixels (`engines/graphs.py`) and notes how they were drawn;
  `results/metadata.py` saves both.
"""
