"""Answers are true, and an edit changes what it says and nothing else."""

from __future__ import annotations

import numpy as np

from mgpt_edge.finetune.mini.world import COLORS, HELD_OUT, SHAPES, sample_scene
from mgpt_edge.finetune.mini.world.dialogue import close_calls, counts, edits, questions, quiz
from mgpt_edge.finetune.mini.world.scene import relation

NUMBERS = {"none": 0, "one": 1, "two": 2, "three": 3, "four": 4}


def test_answers_are_true() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for seed in range(150):
        scene = sample_scene(seed, solids=1 + seed % 3)
        nouns = {f"{s.color} {s.shape}": s for s in scene.solids}
        quizzed, counted = quiz(scene, rng), counts(scene, rng)
        for question in (*questions(scene, rng, 3), *quizzed, *counted):
            text, answer = question.text, question.answer
            kinds.add(text.split()[1])
            if text == "How many solids are there?":
                assert NUMBERS[answer] == len(scene.solids)
            elif text.startswith("How many"):
                shape = text.split()[2][:-1]
                assert NUMBERS[answer] == sum(s.shape == shape for s in scene.solids)
            elif text.startswith("Is there"):
                noun = " ".join(text.rstrip("?").split()[-2:])
                assert (answer == "yes") == (noun in nouns)
            elif text.startswith("Is the"):
                assert answer == nouns[" ".join(text.split()[2:4])].size
            elif text.endswith(("floor?", "table?")):
                assert answer == scene.floor
            elif text.startswith("What color"):
                assert [s.color for s in scene.solids if s.shape == text.rstrip("?").split()[-1]] == [answer]
            else:
                asked = nouns[" ".join(text.rstrip("?").split()[-2:])]
                where = relation(nouns[" ".join(answer.split()[1:])], asked)
                assert where is not None
                assert where in text.replace("in front of", "front")
        assert 6 <= len(quizzed) <= 12
        assert {question.text for question in counted} == {f"How many {shape}s are there?" for shape in SHAPES}
    assert kinds == {"many", "there", "the", "color", "is"}


def test_close_calls_are_told_apart_by_both_words_alone() -> None:
    rng, answers, near = np.random.default_rng(0), [], []
    for seed in range(200):
        scene = sample_scene(seed, solids=1)
        for question in close_calls(scene, rng, 10):
            *_, color, shape = question.text.rstrip("?").split()
            answers.append(question.answer)
            if question.answer == "no":
                near.append((color == scene.solids[0].color) + (shape == scene.solids[0].shape))
    assert 0.5 < answers.count("yes") / len(answers) < 0.6
    assert set(near) == {0, 1}
    assert 0.6 < np.mean(near) < 0.8


def test_edits_do_what_they_say() -> None:
    rng = np.random.default_rng(1)
    kinds = set()
    for seed in range(150):
        scene = sample_scene(seed, solids=1 + seed % 3)
        edit = edits(scene, rng)
        words = edit.instruction.rstrip(".").split()
        kinds.add(words[0])
        before, after = set(scene.solids), set(edit.after.solids)
        assert (edit.after.floor, edit.after.light) == (scene.floor, scene.light)
        if words[0] == "Remove":
            (gone,) = before - after
            assert not after - before
            assert words[-2:] == [gone.color, gone.shape]
        elif words[0] == "Make":
            (gone,), (new,) = before - after, after - before
            assert words[-1] == new.color != gone.color
            assert new.shape == gone.shape == words[-2]
            assert new.color in COLORS
            assert (new.color, new.shape) not in HELD_OUT
        else:
            (new,) = after - before
            assert not before - after
            assert words[2:6] == [new.size, new.finish, new.color, new.shape]
            assert relation(new, scene.solids[0]) in edit.instruction.replace("in front of", "front")
    assert kinds == {"Remove", "Make", "Add"}
