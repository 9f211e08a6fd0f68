"""Text sources, token streams and windows: what they give, and that each bad one says what to do."""

import json

import pytest
import torch

from lowbit.core.errors import BadRequest
from lowbit.pipeline.text import calibration_windows, evaluation_windows, read_texts, token_stream, windows_digest


class Letters:
    """A tokenizer of single characters, called like one of transformers."""

    name_or_path = "letters"

    def __init__(self, bos_token_id=None, eos_token_id=None):
        self.bos_token_id, self.eos_token_id = bos_token_id, eos_token_id

    def __call__(self, texts, **options):
        assert options["add_special_tokens"] is False
        return {"input_ids": [[ord(c) - ord("a") for c in text] for text in texts]}


class TestSources:
    def test_stdlib_splits_share_no_document(self):
        calibration, held_out = read_texts("stdlib"), read_texts("stdlib", "held-out")
        assert held_out
        assert not set(calibration) & set(held_out)

    def test_txt_is_one_document_without_its_byte_order_mark(self, tmp_path):
        file = tmp_path / "a.txt"
        file.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
        assert read_texts(str(file)) == ["one\r\ntwo"]

    def test_txt_of_several_documents(self, tmp_path):
        file = tmp_path / "a.txt"
        file.write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
        assert read_texts(str(file)) == ["one\n", "\ntwo\n"]

    def test_jsonl_gives_the_field_text_of_each_line(self, tmp_path):
        file = tmp_path / "a.jsonl"
        file.write_text('{"id": "x", "text": "one"}\n\n{"text": "zw\u00f6\u2028lf", "id": "y"}\n', encoding="utf-8")
        assert read_texts(str(file)) == ["one", "zw\u00f6\u2028lf"]

    def test_the_only_field_of_strings_needs_no_name(self, tmp_path):
        file = tmp_path / "a.jsonl"
        file.write_text('{"id": 1, "content": "one"}\n{"id": 2, "content": "two"}\n')
        assert read_texts(str(file)) == ["one", "two"]

    def test_rows_with_empty_ones_between_are_paragraphs(self, tmp_path):
        file = tmp_path / "a.jsonl"
        file.write_text("\n".join(json.dumps({"text": row}) for row in ("", "= Title =", "", "Body.")))
        assert read_texts(str(file)) == ["\n\n= Title =\n\n\n\nBody."]

    def test_parquet(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        file = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["one", "two"]}), file)
        assert read_texts(str(file)) == ["one", "two"]

    def test_data_set_in_a_local_folder(self, tmp_path):
        pytest.importorskip("datasets", reason="the `datasets` package is not installed")
        (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
        (tmp_path / "test.jsonl").write_text('{"text": "three"}\n')
        assert read_texts(str(tmp_path)) == ["one", "two"]
        assert read_texts(str(tmp_path), "held-out") == ["three"]
        assert read_texts(f"{tmp_path}::test") == ["three"]

    def test_data_set_without_the_split(self, tmp_path):
        pytest.importorskip("datasets", reason="the `datasets` package is not installed")
        (tmp_path / "train.jsonl").write_text('{"text": "one"}\n')
        with pytest.raises(BadRequest, match="split validation"):
            read_texts(f"{tmp_path}::validation")

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("a.txt", b"", "is empty"),
            ("a.txt", b" \n\t", "is empty"),
            ("a.jsonl", b"\n\n", "is empty"),
            ("a.txt", b"abc\xffdef", "not UTF-8: invalid start byte at byte 3"),
            ("a.jsonl", b'{"text": "\xc3\x28"}', "not UTF-8: invalid continuation byte at byte 10"),
            ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
            ("a.jsonl", b"[1, 2]", "line 1 is neither an object nor a string"),
            ("a.jsonl", b'{"x": "a", "y": "b"}', "its fields are x, y"),
            ("a.jsonl", b'{"x": 1}', "its fields are x"),
            ("a.jsonl", b'{"text": "a"}\n{"text": 7}', "row 2: the text is not a string but 7"),
            ("a.jsonl", b'{"text": "a"}\n{"txet": "b"}', "row 2: the text is not a string but None"),
            ("a.jsonl", b'{"text": "a \\ud83d"}', "row 1: the text holds half of a UTF-16 pair"),
            ("a.csv", b"text\nabc", "its kind is not known"),
        ],
    )
    def test_bad_file(self, tmp_path, name, content, complaint):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadRequest, match=complaint):
            read_texts(str(tmp_path / name))

    def test_bad_parquet(self, tmp_path):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
        with pytest.raises(BadRequest, match="not a readable Parquet file"):
            read_texts(str(tmp_path / "a.parquet"))

    @pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
    def test_missing_file(self, tmp_path, suffix):
        with pytest.raises(BadRequest, match=f"{suffix} does not exist"):
            read_texts(str(tmp_path / f"none.{suffix}"))

    def test_unknown_source_says_what_a_source_is(self):
        with pytest.raises(BadRequest, match="SOURCE is `stdlib`"):
            read_texts("./no/such/data/set")


class TestTokenStream:
    @pytest.mark.parametrize(
        ("bos", "eos", "stream"),
        [
            (9, 8, [9, 0, 1, 9, 2]),
            (None, 8, [0, 1, 8, 2, 8]),
            (None, None, [0, 1, 2]),
        ],
    )
    def test_documents_are_told_apart(self, bos, eos, stream):
        tokens = token_stream(Letters(bos, eos), ["ab", "c"], 26)
        assert tokens.dtype == torch.int64
        assert tokens.tolist() == stream

    def test_vocabulary_of_another_model(self):
        assert token_stream(Letters(), ["az"], 26).tolist() == [0, 25]
        with pytest.raises(BadRequest, match=r"letters does not belong to this model: it gives token 25.*0 to 24"):
            token_stream(Letters(), ["az"], 25)

    def test_special_token_outside_the_vocabulary(self):
        with pytest.raises(BadRequest, match="does not belong"):
            token_stream(Letters(bos_token_id=26), ["az"], 26)


class TestWindows:
    def test_calibration_windows_are_distinct_pieces_of_the_stream(self):
        stream = torch.arange(107)
        windows = calibration_windows(stream, 10, 10, seed=1)
        assert windows.shape == (10, 10)
        starts = windows[:, 0]
        assert sorted(starts.tolist()) == list(range(0, 100, 10))
        assert torch.equal(windows, starts[:, None] + torch.arange(10))

    def test_seed_decides_and_fewer_are_the_first_of_more(self):
        stream = torch.arange(1000)
        windows = calibration_windows(stream, 20, 10, seed=1)
        assert torch.equal(windows, calibration_windows(stream, 20, 10, seed=1))
        assert torch.equal(windows[:5], calibration_windows(stream, 5, 10, seed=1))
        assert not torch.equal(windows, calibration_windows(stream, 20, 10, seed=2))

    def test_too_short_for_calibration(self):
        with pytest.raises(BadRequest, match=r"107 tokens, and 11 samples of 10 need 110.*10 samples.*9 tokens"):
            calibration_windows(torch.arange(107), 11, 10, seed=0)

    def test_evaluation_windows_are_the_stream_in_order(self):
        stream = torch.arange(37)
        windows = evaluation_windows(stream, 10)
        assert windows.shape == (3, 10)
        assert torch.equal(windows.flatten(), stream[:30])

    @pytest.mark.parametrize("tokens", [0, 1, 9])
    def test_too_short_for_evaluation(self, tokens):
        with pytest.raises(BadRequest, match=f"too short: {tokens} tokens, and one window needs 10"):
            evaluation_windows(torch.arange(tokens), 10)

    @pytest.mark.parametrize(("samples", "length"), [(0, 10), (-1, 10), (1, 1), (1, 0)])
    def test_senseless_numbers(self, samples, length):
        with pytest.raises(BadRequest):
            calibration_windows(torch.arange(100), samples, length, seed=0)

    def test_digest_sees_ids_order_and_shape_but_not_the_memory_layout(self):
        windows = torch.arange(24).view(4, 6)
        digest = windows_digest(windows)
        assert len(digest) == 64
        assert digest == windows_digest(windows.T.contiguous().T)
        assert digest != windows_digest(windows.view(6, 4))
        assert digest != windows_digest(windows.flip(0))
        changed = windows.clone()
        changed[3, 5] += 1
        assert digest != windows_digest(changed)
