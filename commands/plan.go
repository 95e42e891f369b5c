package commands

import (
	"fmt"
	"maps"
	"slices"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Limits of a plan.
const (
	mostNodes = 5_000
	mostEdges = 50_000
)

// Needs returns, for each node that is to be built, the nodes to be built whose wheels must be there before: those that its build
// requires, and what these need when they run. Keys are node keys; lists are sorted.
func Needs(nodes []events.Node, edges []events.Edge) map[string][]string {
	build := map[string]bool{}
	for _, n := range nodes {
		build[n.Key()] = n.Action == "build"
	}
	buildDeps, runtimeDeps := map[string][]string{}, map[string][]string{}
	for _, e := range edges {
		if e.Kind == "build" {
			buildDeps[e.From] = append(buildDeps[e.From], e.To)
		} else {
			runtimeDeps[e.From] = append(runtimeDeps[e.From], e.To)
		}
	}
	needs := map[string][]string{}
	for _, n := range nodes {
		if n.Action != "build" {
			continue
		}
		key := n.Key()
		seen := map[string]bool{}
		for todo := slices.Clone(buildDeps[key]); len(todo) > 0; {
			d := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if !seen[d] {
				seen[d] = true
				todo = append(todo, runtimeDeps[d]...)
			}
		}
		list := []string{}
		for d := range seen {
			if build[d] {
				list = append(list, d)
			}
		}
		slices.Sort(list)
		needs[key] = list
	}
	return needs
}

// Depths returns for each key of needs how many builds wait for it, one behind the other: the longest path. Where builds would wait for
// themselves, cycle names one such cycle, each key needing the next and the last the first; nil when there is none.
func Depths(needs map[string][]string) (depths map[string]int, cycle []string) {
	waiting := map[string]int{} // how many still unplaced nodes need the key
	for _, ds := range needs {
		for _, d := range ds {
			waiting[d]++
		}
	}
	depths = map[string]int{}
	var ready []string
	for key := range needs {
		if waiting[key] == 0 {
			ready = append(ready, key)
		}
	}
	for len(ready) > 0 {
		key := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		for _, d := range needs[key] {
			depths[d] = max(depths[d], depths[key]+1)
			if waiting[d]--; waiting[d] == 0 {
				ready = append(ready, d)
			}
		}
	}
	// Whatever is left is needed by something that is left: going back along that comes round.
	neededBy := map[string]string{}
	var at string
	for _, key := range slices.Sorted(maps.Keys(needs)) {
		if waiting[key] > 0 {
			at = key
			for _, d := range needs[key] {
				neededBy[d] = key
			}
		}
	}
	if len(neededBy) == 0 {
		return depths, nil
	}
	for !slices.Contains(cycle, at) {
		cycle = append(cycle, at)
		at = neededBy[at]
	}
	cycle = cycle[slices.Index(cycle, at):]
	slices.Reverse(cycle)
	return depths, cycle
}

func checkPlan(k *fault.Checks, nodes []events.Node, edges []events.Edge) {
	k.Check(len(nodes) <= mostNodes, "/nodes", "has more than %d items", mostNodes)
	k.Check(len(edges) <= mostEdges, "/edges", "has more than %d items", mostEdges)
	if k.Err() != nil {
		return
	}
	keys := map[string]bool{}
	for i, n := range nodes {
		at := fmt.Sprintf("/nodes/%d", i)
		checkBuild(k, at, n.Build())
		k.Check(!keys[n.Key()], at, "is there twice: name and version name a node")
		keys[n.Key()] = true
		k.Check(slices.Contains([]string{"build", "reuse", "skip"}, n.Action), at+"/action", "is not build, reuse or skip")
		k.Check(n.Action != "build" || n.Sdist != nil, at+"/sdist", "is missing, and the node is to be built")
		k.Check(n.Action != "reuse" || n.Wheel != nil, at+"/wheel", "is missing, and the node is to be reused")
		checkFile(k, at+"/sdist", n.Sdist)
		checkFile(k, at+"/wheel", n.Wheel)
		k.Check(form(n.Reason, reasonForm, 50), at+"/reason", "is not a reason code: lower-case words joined by '-'")
		k.Check(clean(n.RequiresPython, 200), at+"/requires_python", "is longer than 200 bytes or not text")
		checkLines(k, at+"/constraints", n.Constraints, mostPins)
	}
	for i, e := range edges {
		at := fmt.Sprintf("/edges/%d", i)
		k.Check(keys[e.From], at+"/from", "is not the key (name/version) of a node")
		k.Check(keys[e.To], at+"/to", "is not the key (name/version) of a node")
		k.Check(e.Kind == "runtime" || e.Kind == "build", at+"/kind", "is not runtime or build")
	}
	if k.Err() == nil {
		_, cycle := Depths(Needs(nodes, edges))
		k.Check(cycle == nil, "/edges", "make builds wait for themselves: %v; break the cycle by reusing a published wheel", cycle)
	}
}
