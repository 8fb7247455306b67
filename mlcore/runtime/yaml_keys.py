"""Keys of YAML mappings, as nodes before they become a dict."""

import yaml

_MERGE = "tag:yaml.org,2002:merge"  # <<: may be there for each mapping that is merged in


def repeated_key(document: yaml.Node | None) -> yaml.ScalarNode | None:
    """A key that its mapping has already: of its values YAML would take the last without a word."""
    waiting, seen = [document], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:  # an alias leads to the same node
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        keys = set()
        for key, value in node.value:
            waiting.append(value)
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in keys:
                    return key
                keys.add(key.value)
    return None
