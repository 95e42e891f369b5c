package commands

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/wheelrefinery/refinery/events"
)

// plan reads "a->b" as a runtime edge and "a=>b" as a build edge. Nodes are to be built, except those in upper case, which are reused.
func plan(spec string) (nodes []events.Node, edges []events.Edge) {
	seen := map[string]bool{}
	node := func(name string) string {
		n := events.Node{Name: strings.ToLower(name), Version: "1", PythonTag: "cp311", PlatformTag: "any", Action: "build", Reason: "asked", Sdist: source1}
		if n.Name != name {
			n.Action, n.Sdist, n.Wheel = "reuse", nil, &wheel1
		}
		if !seen[n.Name] {
			seen[n.Name] = true
			nodes = append(nodes, n)
		}
		return n.Key()
	}
	for _, part := range strings.Fields(spec) {
		kind, separator := "runtime", "->"
		if strings.Contains(part, "=>") {
			kind, separator = "build", "=>"
		}
		from, to, ok := strings.Cut(part, separator)
		if !ok {
			node(part)
			continue
		}
		edges = append(edges, events.Edge{From: node(from), To: node(to), Kind: kind})
	}
	return nodes, edges
}

// line writes needs as "a:bc b:c", without versions.
func line(needs map[string][]string) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(needs)) {
		parts = append(parts, strings.ReplaceAll(key+":"+strings.Join(needs[key], ""), "/1", ""))
	}
	return strings.Join(parts, " ")
}

func TestNeedsAndDepths(t *testing.T) {
	for _, tc := range []struct{ name, plan, needs, depths, cycle string }{
		{"alone", "a", "a:", "map[]", ""},
		{"a runtime requirement is not waited for", "a->b", "a: b:", "map[]", ""},
		{"a build requirement is", "a=>b", "a:b b:", "map[b:1]", ""},
		{"with what that needs when it runs", "a=>b b->c c->d", "a:bcd b: c: d:", "map[b:1 c:1 d:1]", ""},
		{"but not with what that needs to be built", "a=>b b=>c", "a:b b:c c:", "map[b:1 c:2]", ""},
		{"through a wheel that is reused", "a=>B B->c", "a:c c:", "map[c:1]", ""},
		{"a wheel that is reused needs nothing", "A=>b b", "b:", "map[]", ""},
		{"a diamond", "a=>b a=>c b=>d c=>d", "a:bc b:d c:d d:", "map[b:1 c:1 d:2]", ""},
		{"the longest path counts", "a=>d a=>b b=>c c=>d", "a:bd b:c c:d d:", "map[b:1 c:2 d:3]", ""},
		{"both kinds between two", "a=>b a->b", "a:b b:", "map[b:1]", ""},
		{"a cycle at run time does no harm", "a->b b->a c=>a", "a: b: c:ab", "map[a:1 b:1]", ""},
		{"itself", "a=>a", "a:a", "", "a"},
		{"itself by what it needs to run", "a=>b b->a", "a:ab b:", "", "a"},
		{"two", "a=>b b=>a", "a:b b:a", "", "a b"},
		{"three, with what waits for them and what they wait for", "x=>a a=>b b=>c c=>a c=>y y=>z", "a:b b:c c:ay x:a y:z z:", "", "a b c"},
		{"two cycles: one is named", "a=>b b=>a a=>m m=>y y=>z z=>y", "a:bm b:a m:y y:z z:y", "", "y z"},
		{"broken by reuse", "a=>B B=>a", "a:", "map[]", ""},
	} {
		needs := Needs(plan(tc.plan))
		if got := line(needs); got != tc.needs {
			t.Errorf("%s: needs %s, want %s", tc.name, got, tc.needs)
		}
		depths, cycle := Depths(needs)
		if got := strings.ReplaceAll(strings.Join(slices.Sorted(slices.Values(cycle)), " "), "/1", ""); got != tc.cycle {
			t.Errorf("%s: cycle %q, want %q", tc.name, got, tc.cycle)
		}
		if got := strings.ReplaceAll(fmt.Sprint(depths), "/1", ""); cycle == nil && got != tc.depths {
			t.Errorf("%s: depths %s, want %s", tc.name, got, tc.depths)
		}
		nodes, edges := plan(tc.plan)
		c := record
		c.Nodes, c.Edges = nodes, edges
		if err := c.Validate(); (err == nil) != (tc.cycle == "") {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// randomPlan draws a plan; acyclic in its edges of either kind when asked for.
func randomPlan(t *rapid.T, acyclic bool) (nodes []events.Node, edges []events.Edge) {
	n := rapid.IntRange(1, 9).Draw(t, "nodes")
	for i := range n {
		action := rapid.SampledFrom([]string{"build", "build", "build", "reuse", "skip"}).Draw(t, "action")
		nodes = append(nodes, events.Node{Name: string(rune('a' + i)), Version: "1", Action: action})
	}
	for range rapid.IntRange(0, 3*n).Draw(t, "edges") {
		from, to := rapid.IntRange(0, n-1).Draw(t, "from"), rapid.IntRange(0, n-1).Draw(t, "to")
		if acyclic && from == to {
			continue
		}
		if acyclic && from > to {
			from, to = to, from
		}
		kind := rapid.SampledFrom([]string{"build", "runtime"}).Draw(t, "kind")
		edges = append(edges, events.Edge{From: nodes[from].Key(), To: nodes[to].Key(), Kind: kind})
	}
	return nodes, edges
}

// reaches says whether there is a path of one or more steps.
func reaches(next map[string][]string, from, to string) bool {
	seen := map[string]bool{}
	var walk func(string) bool
	walk = func(at string) bool {
		for _, d := range next[at] {
			if d == to {
				return true
			}
			if !seen[d] {
				seen[d] = true
				if walk(d) {
					return true
				}
			}
		}
		return false
	}
	return walk(from)
}

// The definitions, written down a second time and slowly.
func TestNeedsAndDepthsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		acyclic := rapid.Bool().Draw(t, "acyclic")
		nodes, edges := randomPlan(t, acyclic)
		builds, runtime := map[string]bool{}, map[string][]string{}
		for _, n := range nodes {
			builds[n.Key()] = n.Action == "build"
		}
		for _, e := range edges {
			if e.Kind == "runtime" {
				runtime[e.From] = append(runtime[e.From], e.To)
			}
		}
		want := map[string][]string{}
		for _, n := range nodes {
			if !builds[n.Key()] {
				continue
			}
			list := []string{}
			for _, d := range nodes {
				if builds[d.Key()] && slices.ContainsFunc(edges, func(e events.Edge) bool {
					return e.Kind == "build" && e.From == n.Key() && (e.To == d.Key() || reaches(runtime, e.To, d.Key()))
				}) {
					list = append(list, d.Key())
				}
			}
			want[n.Key()] = list
		}
		needs := Needs(nodes, edges)
		if d := cmp.Diff(want, needs); d != "" {
			t.Fatalf("needs of %v:\n%s", edges, d)
		}

		depths, cycle := Depths(needs)
		onCycle := false
		for key := range needs {
			onCycle = onCycle || reaches(needs, key, key)
		}
		if (len(cycle) > 0) != onCycle || (acyclic && onCycle) {
			t.Fatalf("cycle %v of %v", cycle, needs)
		}
		if len(cycle) > 0 {
			for i, key := range cycle {
				if !slices.Contains(needs[key], cycle[(i+1)%len(cycle)]) {
					t.Fatalf("%v is not a cycle of %v", cycle, needs)
				}
			}
			return
		}
		for key := range needs {
			longest := 0
			for other, ds := range needs {
				if slices.Contains(ds, key) {
					longest = max(longest, depths[other]+1)
				}
			}
			if depths[key] != longest {
				t.Fatalf("depth of %s is %d, want %d: %v", key, depths[key], longest, needs)
			}
		}
	})
}

// The largest plan that is allowed must not cost minutes or gigabytes: a worker sends it, and it is checked at every hop.
func TestLargestPlan(t *testing.T) {
	c := record
	c.Nodes = nil
	for i := range mostNodes {
		c.Nodes = append(c.Nodes, events.Node{
			Name: fmt.Sprintf("n%d", i), Version: "1", PythonTag: "cp311", PlatformTag: "any", Action: "build", Reason: "asked", Sdist: source1,
		})
	}
	// All need the last hundred to be built, which need each other to run: half a million needs.
	for i := range mostNodes - 100 {
		c.Edges = append(c.Edges, events.Edge{From: c.Nodes[i].Key(), To: c.Nodes[mostNodes-1].Key(), Kind: "build"})
	}
	for i := range 99 {
		c.Edges = append(c.Edges, events.Edge{From: c.Nodes[mostNodes-1-i].Key(), To: c.Nodes[mostNodes-2-i].Key(), Kind: "runtime"})
	}
	start := time.Now()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second { // 0.3 s on a busy core
		t.Errorf("validating took %v", took)
	}
}
