"""Decoders of page.js: equal to torch within 1e-3 of the range of the means, in Node."""

import json
import subprocess
from importlib import resources

import pytest
import torch
from page_helpers import NODE, make_fit, needs_node
from torch import nn

from pyrovae import MLP, GatedMLP
from pyrovae.nn import Offset
from pyrovae.page import live
from pyrovae.page.packed import DataScale
from pyrovae.page.plane import decoder_of, plane

ACTIVATIONS = [
    *(nn.ReLU(), nn.Tanh(), nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.Softplus(), nn.Softplus(beta=2.0)),
    *(nn.ELU(), nn.ELU(alpha=0.5), nn.LeakyReLU(0.2), nn.Sigmoid()),
]
LINKS = {
    "identity": lambda y: 5 + 3 * y,
    "sigmoid": lambda y: 16 * y.sigmoid(),
    "exp": lambda y: 2 * y.exp(),
    "softplus": nn.functional.softplus,
    "softmax": lambda y: 10 * y.softmax(-1),
}


def network_of(activation):
    network = nn.Sequential(nn.Linear(3, 7), activation, nn.Linear(7, 5, bias=False), Offset(torch.randn(5)))
    return network.eval()


def decoder_for(network, link, covariates=None):
    z = torch.randn(40, 3 - (0 if covariates is None else len(covariates)), dtype=torch.float64)

    def decode(z):
        z = z if covariates is None else torch.cat([z, covariates.double().expand(len(z), -1)], -1)
        with torch.no_grad():
            return link(network(z.float())).double()

    return live.live_decoder(network, decode, z, covariates), z, decode(z)


@needs_node
def test_every_activation_and_link_agrees_with_torch_in_node(tmp_path):
    torch.manual_seed(0)
    cases = [("sigmoid", network_of(activation), None) for activation in ACTIVATIONS]
    cases += [(name, network_of(nn.Tanh()), None) for name in LINKS]
    cases += [("exp", network_of(nn.ReLU()), torch.tensor([0.7, -1.0]))]
    found = []
    for name, network, covariates in cases:
        decoder, z, means = decoder_for(network, LINKS[name], covariates)
        assert decoder is not None, (name, network)
        assert decoder.link == name
        found.append((decoder.to_json(), z, means))
    decoder, z, means = decoder_of(make_fit())
    found.append((decoder.to_json(), z, means))
    for decoded, (_, _, means) in zip(run_in_node(found, tmp_path), found, strict=True):
        size = means.amax() - means.amin()
        assert float((torch.tensor(decoded, dtype=torch.float64) - means).abs().max()) < 1e-3 * size


def run_in_node(cases, folder):
    source = resources.files("pyrovae.page").joinpath("page.js").read_text()
    (folder / "page.js").write_text(source)
    content = [{"live": decoder, "z": z.tolist()} for decoder, z, _ in cases]
    (folder / "cases.json").write_text(json.dumps(content))
    script = """
    const { liveDecoder } = require("./page.js");
    (async () => {
      const found = [];
      for (const { live, z } of require("./cases.json")) {
        const decode = await liveDecoder(live);
        found.push(z.map((place) => Array.from(decode(place))));
      }
      console.log(JSON.stringify(found));
    })();
    """
    done = subprocess.run([NODE, "-e", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_network_or_mean_that_page_js_does_not_know_has_no_live_decoder(monkeypatch):
    torch.manual_seed(0)
    assert decoder_for(GatedMLP(3, 5, hidden=[7]), LINKS["sigmoid"])[0] is None
    assert decoder_for(network_of(nn.Tanh()), lambda y: y.square() + y.exp())[0] is None
    assert decoder_for(network_of(nn.Hardtanh()), LINKS["sigmoid"])[0] is None
    assert decoder_for(MLP(3, 5, hidden=[7]), LINKS["sigmoid"])[0] is not None
    monkeypatch.setattr(live, "MOST_BYTES", 2 * (3 * 7 + 7 * 5) - 1)
    assert decoder_for(MLP(3, 5, hidden=[7]), LINKS["sigmoid"])[0] is None


@needs_node
def test_the_sheet_has_the_means_at_its_places_and_blends_between_them(monkeypatch, tmp_path):
    made = make_fit()
    monkeypatch.setattr("pyrovae.page.plane.live_decoder", lambda *args: None)
    part = plane(made)
    x, y = part["sheet"]["nodes"]
    assert len(x) >= 21
    place = [(x[3] + x[4]) / 2, y[5]]
    (tmp_path / "part.json").write_text(json.dumps(part))
    (tmp_path / "page.js").write_text(resources.files("pyrovae.page").joinpath("page.js").read_text())
    script = f"""const {{ sheetDecoder }} = require("./page.js");
    sheetDecoder(require("./part.json")).then((decode) =>
      console.log(JSON.stringify([{place}, [{x[3]}, {y[5]}], [{x[4]}, {y[5]}]].map((z) => Array.from(decode(z))))));"""
    done = subprocess.run([NODE, "-e", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    middle, left, right = torch.tensor(json.loads(done.stdout), dtype=torch.float64)
    torch.testing.assert_close(middle, (left + right) / 2)
    z = torch.tensor([[x[3], y[5]]])
    with torch.no_grad():
        exact = made.vae.model.likelihood(z.float()).mean[0].double()
    assert float((left - exact).abs().max()) < 1 / 255


def test_packed_data_keep_bytes_for_images_and_half_floats_for_columns():
    x = torch.tensor([[0.0, 1000.0], [8.0, 1001.0], [torch.nan, 1004.0]])
    scale = DataScale.of([x], image=False)
    assert (scale.low.tolist(), scale.high.tolist()) == ([0, 1000], [8, 1004])
    assert scale.pack(x)["type"] == "f2"
    assert DataScale.of([x], image=True).pack(x)["type"] == "u1"
    assert DataScale.of([x], image=True).high.tolist() == [1004]
    assert DataScale.of([torch.ones(2, 1)], image=False).high.tolist() == [2]  # a constant column
    with pytest.raises(RuntimeError):
        scale.pack(torch.zeros(1, 3))
