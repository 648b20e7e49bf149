from tlx.columns import aligned


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [("name", "count", "why"), ("a", "1", ""), ("longer", "1,000", "it is")]
    assert aligned(rows) == ["name    count  why", "a       1", "longer  1,000  it is"]
    assert aligned(rows, right=(1,))[1:] == ["a           1", "longer  1,000  it is"]
