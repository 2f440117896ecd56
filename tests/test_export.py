"An exported model: transformers alone gives the probabilities of cdser, and cdser reads it back whole."
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoFeatureExtractor, AutoModelForAudioClassification, Wav2Vec2Config, Wav2Vec2Model,
                          pipeline)

from cdser.config import LABELS, SAMPLE_RATE, BadInput
from cdser.encoder import NANO, Encoder
from cdser.model import Recogniser, from_transformers, load_stock, save_stock, to_transformers

OVERLAPPING = dict(NANO, conv_kernel=(10, 8, 4, 4), conv_stride=(5, 4, 4, 4))
GROUP = dict(OVERLAPPING, feat_extract_norm='group', do_stable_layer_norm=False)
LENGTHS = (8_000, 64_001, 20_479, 20_480, 20_481, 33_333, 1_280) # parts of frames, whole frames, a single frame


def exported(folder: Path, standardise: bool = False, **config) -> Recogniser:
    "A recogniser of sharp opinions, saved."
    torch.manual_seed(0)
    backbone = Wav2Vec2Model(Wav2Vec2Config(**{**NANO, **config}, apply_spec_augment=False))
    model = Recogniser(Encoder(backbone), standardise=standardise).eval()
    for p in model.parameters():
        if p.ndim > 1:
            p.data *= 1.5
    model.encoder.layer_weights.data = torch.randn(4)
    if standardise:
        model.standardisation.learn({1: torch.randn(9, 128) + 1})
    save_stock(model, folder)
    return model


def recordings() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.normal(.02, .1, n) * np.linspace(.2, 1, n)).astype(np.float32) for n in LENGTHS]


def ours(model: Recogniser, rows: list[np.ndarray]) -> np.ndarray: # (rows, 4) probabilities
    waveforms, lengths = torch.from_numpy(np.concatenate(rows)), torch.tensor([len(row) for row in rows])
    with torch.no_grad():
        return model(waveforms, lengths).logits.softmax(-1).numpy()


def from_pipeline(answers: list[dict]) -> list[float]:
    scores = {answer['label']: answer['score'] for answer in answers}
    return [scores[label] for label in LABELS]


@pytest.mark.parametrize('config', [dict(), dict(standardise=True), OVERLAPPING])
def test_pipeline_and_padded_batches_give_the_probabilities_of_cdser(config, tmp_path):
    model, rows = exported(tmp_path / 'model', **config), recordings()
    expected, classify = ours(model, rows), pipeline('audio-classification', model=str(tmp_path / 'model'))
    assert np.ptp(expected, axis=0).max() > .01 # so that a wrong answer would show
    alone = [from_pipeline(classify(row, top_k=None)) for row in rows]
    batched = [from_pipeline(answers) for answers in classify(rows, top_k=None, batch_size=len(rows))]
    extract = AutoFeatureExtractor.from_pretrained(tmp_path / 'model')
    stock = AutoModelForAudioClassification.from_pretrained(tmp_path / 'model')
    with torch.no_grad():
        inputs = extract(rows, sampling_rate=SAMPLE_RATE, padding=True, return_tensors='pt')
        padded = stock(**inputs).logits.softmax(-1)
    for probabilities in (alone, batched, padded):
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert extract.return_attention_mask and extract.do_normalize and extract.sampling_rate == SAMPLE_RATE


def test_with_group_norm_a_recording_alone_gives_the_probabilities_of_cdser(tmp_path):
    "Its statistics over time take padding in, masked or not, so such a model gets no mask, as it was pre-trained."
    model, rows = exported(tmp_path / 'model', **GROUP), recordings()
    classify = pipeline('audio-classification', model=str(tmp_path / 'model'))
    alone = [from_pipeline(classify(row, top_k=None)) for row in rows]
    np.testing.assert_allclose(alone, ours(model, rows), atol=1e-5)
    assert not classify.feature_extractor.return_attention_mask


def test_transformers_takes_the_folder_without_cdser(tmp_path):
    model, rows = exported(tmp_path / 'model'), recordings()[:2]
    np.savez(tmp_path / 'rows.npz', *rows)
    code = f'''
import sys, json, numpy as np
from transformers import pipeline
rows = list(np.load({str(tmp_path / "rows.npz")!r}).values())
print(json.dumps(pipeline("audio-classification", model={str(tmp_path / "model")!r})(rows, top_k=None, batch_size=2)))
assert not any(name.startswith("cdser") for name in sys.modules)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    probabilities = [from_pipeline(answers) for answers in json.loads(done.stdout.splitlines()[-1])]
    np.testing.assert_allclose(probabilities, ours(model, rows), atol=1e-5)


def test_an_export_leaves_the_callers_random_numbers_and_reads_back_bit_for_bit(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = exported(tmp_path / 'model')
    to_transformers(model)
    torch.manual_seed(3)
    save_stock(model, tmp_path / 'again')
    back = from_transformers(load_stock(tmp_path / 'again'))
    assert torch.equal(before, torch.get_rng_state())
    for folder in ('model', 'again'):
        written = load_file(tmp_path / folder / 'model.safetensors')
        assert written.keys() == load_stock(tmp_path / folder).state_dict().keys()
    np.testing.assert_array_equal(ours(back, recordings()), ours(model, recordings()))


def test_a_stored_model_without_or_with_other_tensors_or_classes_is_refused(tmp_path):
    exported(tmp_path)
    weights, config = load_file(tmp_path / 'model.safetensors'), json.loads((tmp_path / 'config.json').read_text())
    def refuse(match: str, kept: dict = weights, **fields):
        save_file(kept, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
        (tmp_path / 'config.json').write_text(json.dumps({**config, **fields}))
        with pytest.raises(BadInput, match=match) as err:
            load_stock(tmp_path)
        assert str(err.value).isprintable()
    for lost in ('classifier.bias', 'projector.weight', 'layer_weights',
                 'wav2vec2.encoder.layers.1.attention.q_proj.weight'):
        refuse(f"1 missing, such as '{lost}'", {key: value for key, value in weights.items() if key != lost})
    refuse("1 unexpected, such as 'lm_head.bias'", {**weights, 'lm_head.bias': torch.ones(3)})
    refuse('1 of another shape, such as .*classifier.weight', {**weights, 'classifier.weight': torch.ones(3, 128)})
    refuse('1 not finite', {**weights, 'classifier.bias': torch.tensor([0, 0, 0, float('nan')])})
    refuse('is not a classifier of', id2label=dict(enumerate(LABELS[::-1])))
    refuse('2 of another shape, such as .*classifier', id2label={'0': 'ang'})
    refuse('is not a classifier of|unexpected', use_weighted_layer_sum=False)
    (tmp_path / 'config.json').write_text('')
    for folder in (tmp_path, tmp_path / 'none', tmp_path / 'config.json'):
        with pytest.raises(BadInput, match='cannot be loaded'):
            load_stock(folder)
