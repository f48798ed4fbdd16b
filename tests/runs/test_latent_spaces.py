"""The study of three latent spaces."""

from script_helpers import run


def test_the_study_of_latent_spaces_prints_a_line_for_each_way(tmp_path):
    result = run("latent_spaces", "--epochs", 2, "--out", "x.png", cwd=tmp_path)
    header, *lines = result.stdout.splitlines()[2:6]
    assert header.split()[:3] == ["reconstruction", "KL", "ELBO"]
    numbers = {line.split("  ")[0]: [float(cell) for cell in line.split()[-5:]] for line in lines}
    assert list(numbers) == ["reconstruction alone", "KL alone", "both"]
    for reconstruction, kl, elbo, *_ in numbers.values():
        assert abs(reconstruction - kl - elbo) < 0.02
    assert numbers["KL alone"][1] < 0.05
    assert numbers["reconstruction alone"][1] > numbers["both"][1] > 0.05
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
