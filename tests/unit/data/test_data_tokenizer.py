"""Tokens of a document, and which tokenizer a job gets."""

import pickle
from types import SimpleNamespace

import pytest
from data_cases import random_texts, write_jsonl
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from titan_wlb.data import tokenizer as tokenizer_module
from titan_wlb.data.encoders import BpeEncoder, ByteEncoder, HuggingFaceEncoder, train_bpe
from titan_wlb.data.from_config import index_from_config, index_root
from titan_wlb.data.once import DamagedError
from titan_wlb.data.tokenizer import BuiltInTokenizer, build_tokenizer

# isort: split
from torchtitan.components.tokenizer import HuggingFaceTokenizer

TEXTS = ["def plan(step):\n    return step + 1\n", "grüße, 你好 🎉\x00", *random_texts(20)]


@pytest.fixture
def bpe(tmp_path):
    train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    return BpeEncoder(tmp_path / "bpe.json")


@pytest.fixture
def assets(tmp_path):
    """A Hugging Face tokenizer that would cut and fill up what it encodes."""
    folder = tmp_path / "assets"
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


@pytest.fixture
def job_config(tmp_path, monkeypatch):
    """A job over a jsonl file, whose model has the flavors "tiny" (128), "bytes" (258) and "bpe" (300 tokens)."""
    flavors = {name: SimpleNamespace(vocab_size=size) for name, size in (("tiny", 128), ("bytes", 258), ("bpe", 300))}
    monkeypatch.setattr(tokenizer_module, "get_train_spec", lambda name: SimpleNamespace(model_args=flavors))
    return SimpleNamespace(
        job=SimpleNamespace(dump_folder=str(tmp_path / "out")),
        model=SimpleNamespace(name="any", flavor="bpe", hf_assets_path=""),
        training=SimpleNamespace(dataset="jsonl", dataset_path=str(write_jsonl(tmp_path / "a.jsonl", TEXTS))),
        wlb=SimpleNamespace(on_bad_document="skip", segment_tokens=1 << 28),
    )


def test_bytes_put_bos_and_eos_around_utf8():
    assert ByteEncoder().encode_batch(["ab", ""])[0].tolist() == [256, 97, 98, 257]
    assert [ByteEncoder().decode(tokens) for tokens in ByteEncoder().encode_batch(TEXTS)] == TEXTS


def test_bpe_returns_the_text_and_merges(bpe):
    documents = bpe.encode_batch(TEXTS)
    assert [bpe.decode(tokens.tolist()) for tokens in documents] == TEXTS
    assert all(tokens[0] == bpe.bos_id and tokens[-1] == bpe.eos_id for tokens in documents)
    assert bpe.vocab_size == 300 and (bpe.bos_id, bpe.eos_id) == (298, 299)
    assert len(documents[0]) < len(TEXTS[0])


def test_the_same_texts_give_the_same_bpe(tmp_path, bpe):
    train_bpe(iter(TEXTS), 300, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "bpe.json").read_bytes()
    train_bpe(TEXTS[1:], 300, tmp_path / "other.json")
    assert BpeEncoder(tmp_path / "again.json").fingerprint == bpe.fingerprint
    assert BpeEncoder(tmp_path / "other.json").fingerprint != bpe.fingerprint


def test_no_document_can_forge_bos_or_eos(tmp_path, bpe):
    for encoder in (ByteEncoder(), bpe):
        (tokens,) = encoder.encode_batch(["<s></s><|bos|><bos>Ġ"])
        assert max(tokens[1:-1]) < encoder.bos_id


def test_encoders_survive_the_way_to_another_process(bpe, assets):
    for encoder in (ByteEncoder(), bpe, HuggingFaceEncoder(assets)):
        arrived = pickle.loads(pickle.dumps(encoder))
        assert arrived.fingerprint == encoder.fingerprint
        for mine, its in zip(encoder.encode_batch(TEXTS), arrived.encode_batch(TEXTS), strict=True):
            assert mine.tolist() == its.tolist()


def test_a_damaged_bpe_file_is_told_apart(tmp_path, bpe):
    (tmp_path / "bpe.json").write_text((tmp_path / "bpe.json").read_text()[:1000])
    with pytest.raises(DamagedError, match="is damaged"):
        BpeEncoder(tmp_path / "bpe.json")


def test_hugging_face_documents_are_those_of_torchtitan(assets):
    theirs, ours = HuggingFaceTokenizer(str(assets)), HuggingFaceEncoder(assets)
    expected = [theirs.encode(text, add_bos=True, add_eos=True) for text in TEXTS]
    assert [tokens.tolist() for tokens in ours.encode_batch(TEXTS)] == expected
    assert ours.num_special == 2 and expected[0][0] == theirs.bos_id


def test_hugging_face_documents_are_neither_cut_nor_filled_up(assets):
    expected = [len(tokens) for tokens in HuggingFaceEncoder(assets).encode_batch(TEXTS)]
    stored = Tokenizer.from_file(str(assets / "tokenizer.json"))
    stored.enable_truncation(4)
    stored.enable_padding(length=64)
    stored.save(str(assets / "tokenizer.json"))
    assert [len(tokens) for tokens in HuggingFaceEncoder(assets).encode_batch(TEXTS)] == expected


def test_a_job_gets_bytes_or_a_bpe_by_the_vocabulary_of_its_flavor(job_config):
    bpe = build_tokenizer(job_config)
    assert isinstance(bpe, BuiltInTokenizer) and bpe.get_vocab_size() == 300
    job_config.model.flavor = "bytes"
    as_bytes = build_tokenizer(job_config)
    assert as_bytes.get_vocab_size() == 258
    for tokenizer in (bpe, as_bytes):
        tokens = tokenizer.encode("abc", add_bos=True, add_eos=True)
        assert tokens[0] == tokenizer.bos_id and tokens[-1] == tokenizer.eos_id
        assert tokenizer.decode(tokens) == "abc"
        assert tokenizer.encode("abc") == tokens[1:-1]


def test_a_bpe_is_trained_once_beside_the_index_and_anew_for_another_corpus(job_config, monkeypatch, tmp_path):
    first = build_tokenizer(job_config)
    index = index_from_config(job_config, first)
    assert index.opened[0].meta.vocab_size == 300
    assert len(list(index_root(job_config).glob("tokenizer-*.json"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_module, "train_bpe", lambda *args: pytest.fail("trained again"))
        again = build_tokenizer(job_config)
    assert again.encoder.fingerprint == first.encoder.fingerprint
    assert index_from_config(job_config, again).folder == index.folder
    write_jsonl(tmp_path / "a.jsonl", TEXTS[1:])
    assert build_tokenizer(job_config).encoder.fingerprint != first.encoder.fingerprint


def test_a_bpe_is_trained_without_the_bad_documents(job_config, tmp_path):
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write('{"text": "\\ud800"}\n{"text": 5}\n')
    tokenizer = build_tokenizer(job_config)
    assert index_from_config(job_config, tokenizer).opened[-1].meta.skipped == 2


def test_a_damaged_bpe_is_trained_again(job_config):
    first = build_tokenizer(job_config)
    (file,) = index_root(job_config).glob("tokenizer-*.json")
    file.write_text("{")
    assert build_tokenizer(job_config).encoder.fingerprint == first.encoder.fingerprint


def test_a_job_gets_the_tokenizer_of_its_assets(job_config, assets):
    job_config.model.hf_assets_path = str(assets)
    tokenizer = build_tokenizer(job_config)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    index = index_from_config(job_config, tokenizer)
    assert index.tokens(0).tolist() == tokenizer.encode(TEXTS[0], add_bos=True, add_eos=True)
    assert index.folder != index_from_config(job_config, BuiltInTokenizer(ByteEncoder())).folder


@pytest.mark.parametrize(
    ("flavor", "with_assets", "says"),
    [
        ("tiny", False, "vocabulary of 128; the built-in tokenizer needs at least 258"),
        ("bytes", True, "has token ids up to 279, but flavor 'bytes' only a vocabulary of 258"),
    ],
)
def test_a_vocabulary_that_the_model_cannot_hold_is_refused(job_config, assets, flavor, with_assets, says):
    job_config.model.flavor = flavor
    job_config.model.hf_assets_path = str(assets) if with_assets else ""
    with pytest.raises(ValueError, match=says):
        build_tokenizer(job_config)


def test_assets_without_a_tokenizer_are_refused_but_for_the_default_of_torchtitan(job_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job_config.model.hf_assets_path = "./tests/assets/tokenizer"
    assert build_tokenizer(job_config).get_vocab_size() == 300
    job_config.model.hf_assets_path = str(tmp_path)
    with pytest.raises(ValueError, match=r"holds none of tokenizer\.json"):
        build_tokenizer(job_config)
