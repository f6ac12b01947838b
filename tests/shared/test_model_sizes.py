"""The table of a model's sites, as it is filtered and printed."""

from mlx_nb.shared.model_sizes import SiteRow, SiteTable
from mlx_nb.shared.plan import Plan, split_layers


def site(path: str) -> SiteRow:
    return SiteRow(
        site=f"{path}.output",
        class_name="Linear",
        shape="[B, L, D 8]",
        dtype="float32",
        calls=1,
        parameters=8,
        size_bytes=32,
    )


SITES = SiteTable("a<b", [site("model.layers.1.mlp"), site("model.layers.10.mlp"), site("model.norm")])


def test_one_layer_and_every_layer_that_begins_so() -> None:
    assert len(SITES["layers.1.*"]) == 1  # type: ignore[arg-type]
    assert len(SITES["layers.1*"]) == 2  # type: ignore[arg-type]


def test_a_glob_that_matches_nothing_says_what_would() -> None:
    assert (
        repr(SITES["*.mpl"])
        == "0 sites of a<b\n No site matches '*.mpl'. Type a glob such as '*.mlp' or '*.norm'"
    )
    assert repr(SITES["nothing*"]).endswith("Type a glob such as '*.norm'")
    assert repr(SITES["*.mlp"]).startswith("2 sites of a<b\n site ")  # control: no hint


def test_tables_do_not_wrap_in_a_notebook() -> None:
    for table in (SITES, Plan(model="a<b", shards=split_layers(3, 2))):
        html = table._repr_html_()
        assert html.startswith('<pre style="white-space: pre; overflow-x: auto">')
        assert "a&lt;b" in html
        assert "a<b" not in html
        assert html.count("\n") == repr(table).count("\n")
