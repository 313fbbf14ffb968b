"""Records as tokens: the right sequence, labels and sizes, the same after a kill; batches that processes share."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.finetune import tokenised as module
from mgpt_edge.finetune.conversation import UNLABELLED
from mgpt_edge.finetune.encoder import Encoder
from mgpt_edge.finetune.epochs import Epochs
from mgpt_edge.finetune.parallel import ALONE
from mgpt_edge.finetune.records import Message, Record
from mgpt_edge.finetune.tokenised import tokenise
from mgpt_edge.runtime.errors import CheckpointError, InvalidRequest
from mgpt_edge.runtime.family.layout import ImageLayout, buckets
from mgpt_edge.runtime.family.tasks import template
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK
from mgpt_edge.runtime.intake.pictures import fit, open_picture
from tests.finetune.conversations import drawing, record, write_pictures, write_records

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(checkpoints):
    torch.set_num_threads(1)
    return Checkpoint.open(checkpoints["7b"])


@pytest.fixture
def encoder(checkpoint):
    return Encoder(checkpoint, buckets(128), 400, CPU)


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path, 4)
    return tmp_path


def conversation(*messages: Message) -> Record:
    return Record(1, 1, messages)


def test_a_drawing_says_the_size_that_it_has(encoder, folder):
    path = folder / "0.png"  # 160x100
    question = template("text-to-image").format(width=512, height=512, prompt="a red cube")
    tokens = encoder.encode(conversation(Message(question), Message(f"{IMAGE_MARK}\n", (path,))))
    v = encoder.checkpoint.vocabulary
    begin = tokens.sample.tokens.index(v.begin_image)
    width, height = 160, 96
    layout = ImageLayout(width, height, v)
    said = encoder.tokenizer.decode(tokens.sample.tokens[1 : begin - 1])
    assert said == template("text-to-image").format(width=width, height=height, prompt="a red cube")
    assert tokens.sample.tokens[begin:] == [*tokens.sample.tokens[begin : begin + len(layout)], v.separator]
    codes = layout.decode(tokens.sample.tokens[begin : begin + len(layout)])
    pixels = torch.tensor(fit(open_picture(path), [(width, height)]))[None]
    assert np.array_equal(codes, encoder.vq.encode_pixels(pixels)[0].numpy())
    assert tokens.sample.learnt == [False] * begin + [True] * (len(layout) + 1)
    assert tokens.guided
    assert not tokens.cut


def test_other_prompts_stay_as_they_are(encoder, folder):
    for question in ("a cat", "Generate an image according to the following prompt:\na cat"):
        tokens = encoder.encode(conversation(Message(question), Message(IMAGE_MARK, (folder / "0.png",))))
        begin = tokens.sample.tokens.index(encoder.checkpoint.vocabulary.begin_image)
        assert encoder.tokenizer.decode(tokens.sample.tokens[1 : begin - 1]) == question


def test_only_text_to_image_is_guided(encoder, folder):
    picture = (folder / "0.png",)
    editing = conversation(Message(f"make it red {IMAGE_MARK}", picture), Message(IMAGE_MARK, picture))
    talking = conversation(Message("draw"), Message(f"here: {IMAGE_MARK}", picture))
    reading = conversation(Message("what is it?", picture), Message("a cat"))
    assert [encoder.encode(each).guided for each in (editing, talking, reading)] == [False] * 3
    sample = encoder.encode(editing).sample
    assert sample.learnt.count(True) == len(ImageLayout(160, 96, encoder.checkpoint.vocabulary)) + 1


def test_long_sequences_are_cut(checkpoint, folder):
    encoder = Encoder(checkpoint, buckets(128), 60, CPU)
    tokens = encoder.encode(conversation(Message("a cat"), Message(IMAGE_MARK, (folder / "0.png",))))
    assert (len(tokens.sample), tokens.cut, tokens.guided) == (60, True, False)
    with pytest.raises(InvalidRequest, match="the question alone fills the 60 tokens"):
        encoder.encode(conversation(Message("many words " * 60), Message("yes")))


def test_pictures_need_the_vq_weights(checkpoint, folder):
    encoder = Encoder(replace(checkpoint, vq=None), buckets(128), 400, CPU)
    assert encoder.encode(conversation(Message("a"), Message("b"))).sample
    with pytest.raises(CheckpointError, match="there are no VQ weights"):
        encoder.encode(conversation(Message("a", (folder / "0.png",)), Message("b")))


def test_bad_records_are_left_out_or_fatal(encoder, folder):
    (folder / "4.png").write_bytes(b"no picture")
    data = write_records(folder, [drawing(0), drawing(4), drawing(9), drawing(1), {"image": "1.png"}])
    found = tokenise(data, encoder, folder / "tokens", ALONE)
    assert (len(found), found.records, [bad.number for bad in found.bad]) == (2, 5, [2, 3, 5])
    assert "is no picture of a known format" in found.bad[0].reason
    assert "there is no picture" in found.bad[1].reason
    for place in ("tokens", "others"):  # known from before, or met now
        with pytest.raises(InvalidRequest, match=r"record 2 \(line 1\d\).*--bad-records skip"):
            tokenise(data, encoder, folder / place, ALONE, skip_bad=False)


def test_nothing_to_train_on(encoder, folder):
    with pytest.raises(InvalidRequest, match="there are no records"):
        tokenise(write_records(folder, []), encoder, folder / "tokens", ALONE)
    with pytest.raises(InvalidRequest, match="none of 1 records can be trained on; the first is record 1"):
        tokenise(write_records(folder, [{}]), encoder, folder / "tokens", ALONE)


def test_a_kill_costs_a_shard_and_changes_nothing(encoder, folder, monkeypatch):
    monkeypatch.setattr(module, "SHARD_RECORDS", 2)
    data = write_records(folder, [drawing(number % 4) for number in range(7)])
    whole = tokenise(data, encoder, folder / "whole", ALONE)
    encoded = []

    def killed(self, entry):
        encoded.append(entry.number)
        if entry.number == 6:
            raise KeyboardInterrupt
        return original(self, entry)

    original = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenise(data, encoder, folder / "cut", ALONE)
    monkeypatch.setattr(Encoder, "encode", lambda self, entry: encoded.append(entry.number) or original(self, entry))
    again = tokenise(data, encoder, folder / "cut", ALONE)
    assert encoded == [1, 2, 3, 4, 5, 6, 5, 6, 7]
    assert [again[i] for i in range(7)] == [whole[i] for i in range(7)]
    tokenise(data, encoder, folder / "cut", ALONE)
    assert len(encoded) == 9


def test_changed_data_is_encoded_anew(encoder, checkpoint, folder):
    data = write_records(folder, [drawing(0), drawing(1)])
    first = tokenise(data, encoder, folder / "tokens", ALONE)
    assert tokenise(data, encoder, folder / "tokens", ALONE).fingerprint == first.fingerprint
    Image.new("RGB", (128, 128), "red").save(folder / "0.png")
    os.utime(folder / "0.png", ns=(1, 1))
    changed = tokenise(data, encoder, folder / "tokens", ALONE)
    assert changed.fingerprint != first.fingerprint
    assert changed[0].tokens != first[0].tokens
    assert changed[1] == first[1]
    shorter = Encoder(checkpoint, buckets(128), 60, CPU)
    assert tokenise(data, shorter, folder / "tokens", ALONE).cut == 2


@pytest.fixture(scope="module")
def many(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    write_pictures(folder, 4)
    asking = [record("w " * number, "yes " * (number % 5 + 1)) for number in range(1, 31)]
    data = write_records(folder, [*asking, *(drawing(number) for number in range(4))])
    return tokenise(data, Encoder(checkpoint, buckets(128), 400, CPU), folder / "tokens", ALONE)


def rows(batch):
    """Each sequence's tokens up to its last label, and its labels: whatever padding stands behind."""
    found = []
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        end = max(index for index, label in enumerate(labels) if label != UNLABELLED) + 1
        found.append((tuple(tokens[:end]), tuple(labels[:end])))
    return found


def test_an_epoch_has_every_sequence(many):
    epochs = Epochs(many, 4, 0.0, seed=3)
    assert epochs.steps == 9
    for epoch in range(2):
        seen = {row for step in range(9) for row in rows(epochs.batch(9 * epoch + step))}
        assert len(seen) == len(many)
    assert rows(epochs.batch(0)) == rows(Epochs(many, 4, 0.0, seed=3).batch(0))
    assert [rows(epochs.batch(n)) for n in range(9)] != [rows(Epochs(many, 4, 0.0, 4).batch(n)) for n in range(9)]


def test_a_batch_has_sequences_of_like_lengths(many):
    epochs = Epochs(many, 4, 0.0, seed=0)
    spread = [np.ptp(many.lengths[epochs.order(0)[step]]) for step in range(8)]
    assert np.median(spread) < 0.2 * np.ptp(many.lengths)


@pytest.mark.parametrize("ranks", [2, 4])
def test_processes_share_the_same_batch(many, ranks):
    epochs = Epochs(many, 4, 0.5, seed=0)
    for number in range(9):
        shares = [rows(epochs.batch(number, rank, ranks)) for rank in range(ranks)]
        assert {len(share) for share in shares} == {4 // ranks}
        assert sorted(row for share in shares for row in share) == sorted(rows(epochs.batch(number)))


def test_unequal_shares_are_refused(many):
    with pytest.raises(ValueError, match="3 processes can't share batches of 4"):
        Epochs(many, 4, 0.0, seed=0).batch(0, 0, 3)


def test_prompts_are_dropped_from_drawings_only(many, checkpoint):
    batches = [Epochs(many, 34, 1.0, seed=0).batch(0), Epochs(many, 34, 0.0, seed=0).batch(0)]
    begins = [[tokens[0] for tokens, _ in rows(batch)] for batch in batches]
    v = checkpoint.vocabulary
    assert sorted(begins[0]) == sorted([v.begin_image] * 4 + [v.bos] * 30)
    assert begins[1] == [v.bos] * 34
    for tokens, labels in rows(batches[0]):
        if tokens[0] == v.begin_image:
            assert labels == (*tokens[1:], v.end_image)


def test_drops_are_one_in_ten(many, checkpoint):
    epochs = Epochs(many, 34, 0.1, seed=0)
    starts = [tokens[0] for number in range(40) for tokens, _ in rows(epochs.batch(number))]
    assert 4 <= starts.count(checkpoint.vocabulary.begin_image) <= 32  # of 160 drawings: 16 expected, deviation 3.8
