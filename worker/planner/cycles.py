"""Strongly connected components."""


def components(graph):
    """Tarjan's algorithm without recursion: the components of {node: [nodes]}, those that others need first."""
    order, low, on, stack, found = {}, {}, set(), [], []
    for start in graph:
        if start in order:
            continue
        work = [(start, iter(graph[start]))]
        order[start] = low[start] = len(order)
        stack.append(start)
        on.add(start)
        while work:
            node, rest = work[-1]
            for other in rest:
                if other not in order:
                    order[other] = low[other] = len(order)
                    stack.append(other)
                    on.add(other)
                    work.append((other, iter(graph[other])))
                    break
                if other in on:
                    low[node] = min(low[node], order[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    found.append([])
                    while True:
                        other = stack.pop()
                        on.discard(other)
                        found[-1].append(other)
                        if other == node:
                            break
    return found
