"""JSON documents of another form."""

import copy


def changed(data, path, value):
    """A copy of ``data`` with another value at a path of keys and indices."""
    other = copy.deepcopy(data)
    place = other
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return other
