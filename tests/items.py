"""Items as tests look at them."""

from lifecycle.batch import Example, Ids, Item


def ids_of(item: Item) -> Ids:
    """The ids of one sequence."""
    assert isinstance(item, Example)
    return item.ids
