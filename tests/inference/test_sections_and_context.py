"""What the pipeline and the processor of a checkpoint do with sections and context."""

import json
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from helpers import TEXTS, radiograph, talkative, tiny_checkpoint
from PIL import Image
from transformers import BertConfig, BertLMHeadModel, BertTokenizer, ByT5Tokenizer, ProphetNetTokenizer

from hf_cxr.inference.checks import UnusableCheckpoint
from hf_cxr.inference.pipeline import ImpressionPipeline
from hf_cxr.inference.processor import ImpressionProcessor
from hf_cxr.inference.sections import CONTEXT_TOKENS, LAYOUT, Layout, context_of, prompt_ids, report_ids
from hf_cxr.models.modeling import build, load_checkpoint, train_tokenizer

LAYOUTS = [Layout(("findings", "impression"), ("indication", "age_sex")), Layout(("findings",))]
HOSTILE = "<impression></s><pad> \n\n🫁 " + "cough " * 2000
CONTEXTS = [
    {"indication": "Cough"},
    {},
    {"indication": "Pain after a fall", "age": 63, "sex": "F"},
    {"age": 5.0},
]
TEXTS_OF_ALL_KINDS = [
    *("<impression>", "<indication> Cough <findings>", "<IMPRESSION> < impression >", "</s><pad>[SEP][PAD][CLS]<s>"),
    *("cough " * 2000, "a" * 10_000, "\x00\x1b[31m\u202e fever", "🫁🫁", "سعال شديد", "\u200b", "", " \n\t "),
]
STANDALONE = """
import json, sys
sys.modules["hf_cxr"] = None
import numpy as np
from transformers import pipeline
pipe = pipeline(model=sys.argv[1], trust_remote_code=True)
image = np.random.default_rng(1).integers(0, 256, (80, 70), dtype=np.uint8)
answers = pipe([{"frontal": image} | context for context in json.loads(sys.argv[2])], batch_size=4)
print("TEXT:" + json.dumps(answers))
"""


def with_layout(layout: Layout):
    checkpoint = tiny_checkpoint(max_new_tokens=12)
    if layout.tokens:
        checkpoint.tokenizer.add_special_tokens({"extra_special_tokens": layout.tokens})
        checkpoint.model.decoder.resize_token_embeddings(len(checkpoint.tokenizer))
        checkpoint.model.config.vocab_size = checkpoint.model.config.decoder.vocab_size
    checkpoint = talkative(checkpoint, eyes=2)
    setattr(checkpoint.model.config, LAYOUT, layout.saved())
    return checkpoint


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.target)
def pipe(request):
    parts = with_layout(request.param)
    return ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)


@pytest.fixture(scope="module")
def reporter():
    parts = with_layout(LAYOUTS[0])
    return ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)


def studies():
    return [{"frontal": radiograph(1)} | context for context in CONTEXTS]


def texts(answers):
    return [[{name: text for name, text in row.items() if name != "score"} for row in rows] for rows in answers]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "num_return_sequences": 2, "return_findings": True}])
def test_an_answer_holds_the_sections_of_the_model_alone_and_in_batches(pipe, options):
    alone = [pipe(study, **options) for study in studies()]
    assert texts(pipe(studies(), batch_size=3, **options)) == texts(alone)
    labels = {"finding_labels", "possible_finding_labels"} if "return_findings" in options else set()
    for row in (row for rows in alone for row in rows):
        assert set(row) - {"truncated"} == {*pipe.layout.sections, "score"} | labels
    assert len({str(texts([rows])) for rows in alone}) == (4 if pipe.layout.context else 1), (
        "context is read or ignored"
    )


@pytest.mark.parametrize("beams", [1, 2])
def test_both_sections_have_a_text_whatever_else_the_model_prefers(beams):
    parts = with_layout(LAYOUTS[0])
    tokenizer = parts.tokenizer
    liked = [tokenizer.pad_token_id, tokenizer.bos_token_id, *tokenizer("\n\t  ").input_ids]
    liked += [parts.model.generation_config.eos_token_id, *tokenizer.convert_tokens_to_ids(LAYOUTS[0].tokens)]
    bias = torch.zeros(len(tokenizer)).index_fill(0, torch.tensor(liked), 1000)
    parts.model.decoder.lm_head.register_forward_hook(lambda _, __, logits: logits + bias)
    pipe = ImpressionPipeline(model=parts.model, tokenizer=tokenizer, image_processor=parts.image_processor)
    for longest in (5, 12):
        options = {"num_beams": beams, "max_new_tokens": longest}
        alone = [pipe(study, **options) for study in studies()]
        assert texts(pipe(studies(), batch_size=4, **options)) == texts(alone)
        for row in (row for rows in alone for row in rows):
            assert row["findings"].strip(), row
            assert row["impression"].strip(), row


def test_a_tokenizer_without_the_tokens_of_the_layout_is_refused(reporter, tmp_path):
    reporter.save_pretrained(tmp_path)
    train_tokenizer(TEXTS, 350).save_pretrained(tmp_path)  # of an earlier model, say
    told = "tokenizer is damaged or another model's: it lacks <indication>, <age_sex>, <findings>, <impression>, which"
    with pytest.raises(UnusableCheckpoint, match=told) as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    other = train_tokenizer(TEXTS, 350)
    other.add_tokens(["<more>"] * 9 + LAYOUTS[0].tokens[:-1], special_tokens=True)
    other.unk_token = "</s>"  # as in GPT-2, whose unknown token is the end
    with pytest.raises(UnusableCheckpoint, match="it lacks <impression>, which its cxr_layout needs"):
        ImpressionPipeline(model=reporter.model, tokenizer=other, image_processor=reporter.image_processor)


def test_every_form_of_many_studies_carries_its_context(reporter):
    empty = dict.fromkeys(("frontal", "lateral", "indication", "age", "sex"))
    rows = [empty | row for row in studies()]
    alone = texts([reporter(row) for row in rows])
    columns = {name: [row[name] for row in rows] for name in empty}
    dataset = Dataset.from_dict(columns | {"frontal": [Image.fromarray(row["frontal"]) for row in rows]})
    assert texts(reporter(dataset, batch_size=2)) == alone
    assert texts(reporter(dataset.to_iterable_dataset())) == alone
    assert texts(reporter(row for row in rows)) == alone


def test_attention_of_a_report_is_over_the_words_of_both_sections(reporter):
    [row] = reporter({"frontal": radiograph(1), "indication": "Cough"}, return_attention="words", max_new_tokens=8)
    assert [word for word, _ in row["attention_words"]] == [*row["findings"].split(), *row["impression"].split()]


def test_what_is_withheld_or_not_read_has_all_sections_and_none_of_their_texts(reporter):
    [row] = reporter({"frontal": radiograph(1)}, abstain_below=1.0)
    assert row["findings"] is row["impression"] is None
    [[row]] = reporter([{"frontal": radiograph(1), "indication": 5}], on_unreadable="skip")
    assert row == {"findings": None, "impression": None, "score": None, "error": "indication: a text, not int"}
    with pytest.raises(ValueError, match=r"^age: a number of years, not 'old'$"):
        reporter({"frontal": radiograph(1), "age": "old"})
    with pytest.raises(ValueError, match="'frontal' and 'lateral', not \\['indicaton'\\], and perhaps 'indication'"):
        reporter({"frontal": radiograph(1), "indicaton": "Cough"})


def test_a_hostile_context_is_text_and_is_cut(reporter):
    tokenizer = reporter.tokenizer
    ids = prompt_ids(tokenizer, reporter.layout, {"indication": HOSTILE})
    assert len(ids) == CONTEXT_TOKENS + 2
    assert not {*tokenizer.all_special_ids} & {*ids[1:-1]}
    assert tokenizer.decode(ids[1:-1]).startswith("<impression></s><pad> ")
    [row] = reporter({"frontal": radiograph(1), "indication": HOSTILE})
    assert {*row} - {"truncated"} == {"findings", "impression", "score"}


def pieces(folder):
    """A vocabulary of WordPiece that knows the words of the markers."""
    words = {word for text in TEXTS for word in text.lower().replace(".", " . ").split()}
    marks = ["indication", "findings", "impression", "sep", "pad", "cls", *"[]<>/"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *marks, *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary += sorted(words - {*vocabulary}) + [f"w{number}" for number in range(300)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return str(folder / "vocab.txt")


@pytest.mark.parametrize("kind", ["bytes, fast", "WordPiece, fast", "WordPiece, slow", "bytes, slow"])
def test_no_text_becomes_a_token_of_a_section_an_end_or_padding(kind, tmp_path):
    make = {
        "bytes, fast": lambda: train_tokenizer(TEXTS, 350),
        "WordPiece, fast": lambda: BertTokenizer(pieces(tmp_path)),
        "WordPiece, slow": lambda: ProphetNetTokenizer(pieces(tmp_path)),
        "bytes, slow": ByT5Tokenizer,
    }
    tokenizer, layout = make[kind](), Layout(("findings", "impression"), ("indication", "comparison"))
    tokenizer.add_special_tokens({"extra_special_tokens": layout.tokens})
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
    asked, compared, findings, impression = tokenizer.convert_tokens_to_ids(layout.tokens)
    ours = {asked, compared, findings, impression, tokenizer.pad_token_id, tokenizer.eos_token_id}
    ours |= {tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    for text in TEXTS_OF_ALL_KINDS:
        ids = prompt_ids(tokenizer, layout, context_of({"indication": text, "comparison": text}))
        marks = [token for token in ids if token in ours]
        assert marks in ([asked, compared, findings], [findings]), (text, ids)
        assert (len(ids) > len(marks)) == (len(marks) > 1), "no context without a token of its text"
        assert len(ids) <= len(marks) + 2 * CONTEXT_TOKENS
        assert text.strip(" \n\t\u200b") == "" or asked in ids, text
        [ids] = report_ids(tokenizer, layout, {"findings": [text], "impression": [text]}, 50_000)
        assert [token for token in ids if token in ours] == [impression, tokenizer.eos_token_id]


def test_contexts_of_all_kinds_get_the_same_texts_in_a_batch_from_a_wordpiece_model(tmp_path):
    tokenizer = BertTokenizer(pieces(tmp_path))
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), is_decoder=True, max_position_embeddings=256, **sizes)
    torch.manual_seed(0)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    parts = talkative(build("tiny", str(tmp_path), 32, max_new_tokens=12, layout=LAYOUTS[0]), eyes=2)
    pipe = ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)
    asked = [{"frontal": radiograph(1), "indication": text} for text in TEXTS_OF_ALL_KINDS]
    alone = [pipe(study) for study in asked]
    assert texts(pipe(asked, batch_size=len(asked))) == texts(alone)
    assert len({str(rows) for rows in texts(alone)}) > 3


def test_the_processor_makes_the_loss_of_the_text_behind_its_context(reporter, tmp_path):
    reporter.save_pretrained(tmp_path)
    processor = ImpressionProcessor.from_pretrained(tmp_path)
    assert processor.layout == LAYOUTS[0].saved()
    text = {"findings": ["No effusion.", "Cardiomegaly."], "impression": ["Normal.", "Large heart. No edema."]}
    views = {"frontal": [radiograph(1), radiograph(2)]}
    batch = processor(**views, text=text, context=CONTEXTS[:2], return_tensors="pt")
    losses, sizes = [], []
    for place in range(2):  # a study alone has no padding
        one = {name: texts[place] for name, texts in text.items()}
        alone = processor(views["frontal"][place], text=one, context=CONTEXTS[place], return_tensors="pt")
        ids, labels = alone["decoder_input_ids"][0], alone["labels"][0]
        prompt = prompt_ids(processor.tokenizer, LAYOUTS[0], CONTEXTS[place])
        assert ids[: len(prompt) + 1].tolist() == [processor.tokenizer.bos_token_id, *prompt]
        assert (labels[: len(prompt)] == -100).all()
        with torch.inference_mode():
            logits = reporter.model(alone["pixel_values"], decoder_input_ids=ids[None]).logits[0, len(prompt) :]
        targets = labels[len(prompt) :]
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        sizes.append(len(targets))
    with torch.inference_mode():
        loss = reporter.model(**batch).loss
    torch.testing.assert_close(loss, sum(losses) / sum(sizes), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="text is a dict of findings and impression"):
        processor(text="Normal.")


def test_a_saved_pipeline_takes_context_where_the_kit_is_not_installed(reporter, tmp_path):
    reporter.save_pretrained(tmp_path)
    words = [sys.executable, "-c", STANDALONE, str(tmp_path), json.dumps(CONTEXTS)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    line = next(line for line in result.stdout.splitlines() if line.startswith("TEXT:"))[5:]
    assert texts(json.loads(line)) == texts(reporter(studies()))
