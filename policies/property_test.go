package policies

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/events"
)

// sim is the loop of log, runs policy, verdicts, bus and workers in memory, one small step at a time: what else happens between two steps is up to
// rapid. Decisions are the real ones.
type sim struct {
	*rapid.T
	policy  *runsPolicy
	seen    int // events that the policy has read
	saved   []byte
	savedAt int

	log    []events.Recorded
	builds map[string]commands.Build
	runs   map[string]commands.Run
	known  map[uuid.UUID]bool   // handled commands
	bus    map[string][]Message // by stream
	built  map[string]bool      // build streams with a wheel
	plans  map[uuid.UUID]events.RunPlanned
	fails  map[string]bool // names whose build fails

	judged  int                        // events that the hints policy has read
	mends   map[string]bool            // names whose build fails until a recipe is in effect
	hinted  map[string]bool            // names for whose failures there is a hint with a recipe
	recipes map[string][]events.Recipe // in effect, by build stream
}

func newPolicy() *runsPolicy {
	return &runsPolicy{open: map[uuid.UUID]*openRun{}, wanted: map[string][]*openRun{}}
}

// handle decides one command, as the handler would.
func (s *sim) handle(m Message) (applied bool) {
	if s.known[m.Meta.ID] {
		return true
	}
	s.known[m.Meta.ID] = true
	if _, err := commands.Encode(m.Meta, m.Command); err != nil {
		s.Fatalf("%s: %v", m.Command.Name(), err)
	}
	stream := m.Command.Stream()
	record := func(e events.Event) {
		s.log = append(s.log, events.Recorded{
			Position: int64(len(s.log) + 1), Stream: stream, Command: m.Meta.ID, Correlation: m.Meta.Correlation, Event: e,
		})
	}
	switch c := m.Command.(type) {
	case interface {
		Decide(commands.Build) ([]events.BuildEvent, error)
	}:
		decided, err := c.Decide(s.builds[stream])
		for _, e := range decided {
			record(e)
			s.builds[stream] = s.builds[stream].Fold(e)
			switch e := e.(type) {
			case events.BuildSucceeded:
				s.built[stream] = true
			case events.BuildQueued:
				s.recipes[stream] = e.Recipes
			}
		}
		return err == nil
	case interface {
		Decide(commands.Run) ([]events.RunEvent, error)
	}:
		decided, err := c.Decide(s.runs[stream])
		for _, e := range decided {
			record(e)
			s.runs[stream] = s.runs[stream].Fold(e)
		}
		return err == nil
	}
	s.Fatalf("%s decides on something else", m.Command.Name())
	return false
}

func (s *sim) do(c commands.Command) bool {
	return s.handle(Message{commands.Meta{ID: uuid.New(), Actor: "tester"}, c})
}

// read lets the policy react to one event and put its commands on the bus.
func (s *sim) read() {
	m := s.log[s.seen]
	s.seen++
	var out []Message
	for _, r := range s.policy.react(m, &out) {
		if done, ok := r.finish(); ok {
			out = append(out, reaction(runs, m, done))
			s.policy.forget(r)
		}
	}
	for _, message := range out {
		stream := message.Command.Stream()
		if c, ok := message.Command.(commands.EnqueueBuild); ok {
			plan := s.plans[c.Run]
			for _, need := range commands.Needs(plan.Nodes, plan.Edges)[c.Build.Name+"/"+c.Build.Version] {
				i := slices.IndexFunc(plan.Nodes, func(n events.Node) bool { return n.Key() == need })
				if !s.built[plan.Nodes[i].Build().Stream()] {
					s.Fatalf("%s is asked for, and %s, which it needs, is not there", c.Build, need)
				}
			}
		}
		s.bus[stream] = append(s.bus[stream], message)
	}
}

// judge lets the hints policy read one event.
func (s *sim) judge() {
	m := s.log[s.judged]
	s.judged++
	e, ok := m.Event.(events.BuildFailed)
	if !ok {
		return
	}
	id, _ := events.ParseBuild(m.Stream)
	verdict := commands.HintBuild{Build: id, Attempt: e.Attempt, Most: 3, FailedAt: noon}
	if s.hinted[id.Name] {
		verdict.Hints = []events.HintMatch{{Hint: "h", Recipes: []events.Recipe{{Kind: "apt", Items: []string{"gcc"}}}}}
	}
	s.bus[m.Stream] = append(s.bus[m.Stream], reaction("policy:hints", m, verdict))
}

// save keeps what the policy knows; crash goes back there: commands are on the bus already, memory and checkpoint are old.
func (s *sim) save() {
	var err error
	if s.saved, err = json.Marshal(slices.Collect(maps.Values(s.policy.open))); err != nil {
		s.Fatal(err)
	}
	s.savedAt = s.seen
}

func (s *sim) crash() {
	s.policy, s.seen = newPolicy(), s.savedAt
	var open []*openRun
	if err := json.Unmarshal(s.saved, &open); err != nil {
		s.Fatal(err)
	}
	for _, r := range open {
		s.policy.remember(r)
	}
}

// deliver hands the first message of a stream to the handler; now and then it comes once more.
func (s *sim) deliver(stream string) {
	m := s.bus[stream][0]
	s.handle(m)
	if rapid.IntRange(0, 9).Draw(s.T, "again") > 0 {
		if s.bus[stream] = s.bus[stream][1:]; len(s.bus[stream]) == 0 {
			delete(s.bus, stream)
		}
	}
}

// work lets a worker do something with a build.
func (s *sim) work(stream string) {
	id, _ := events.ParseBuild(stream)
	b := s.builds[stream]
	switch {
	case b.Status == "queued" || b.Status == "retrying":
		s.do(commands.LeaseBuild{Build: id, Worker: "w", ExpiresAt: noon})
	case rapid.IntRange(0, 9).Draw(s.T, "release") == 0:
		s.do(commands.ReleaseBuild{Build: id, Attempt: b.Attempt, Reason: "drain"})
	case s.fails[id.Name], s.mends[id.Name] && len(s.recipes[stream]) == 0:
		s.do(commands.FailBuild{Build: id, Attempt: b.Attempt, Worker: "w", Class: events.ClassCompiler, Reason: "no gcc"})
	default:
		s.do(commands.SucceedBuild{Build: id, Attempt: b.Attempt, Worker: "w", Wheel: *wheel(id.Name), SdistSHA256: sdist(id.Name).SHA256})
	}
}

func (s *sim) workable() (streams []string) {
	for stream, b := range s.builds {
		if slices.Contains([]string{"queued", "retrying", "leased", "building"}, b.Status) {
			streams = append(streams, stream)
		}
	}
	slices.Sort(streams)
	return streams
}

// For random plans that share builds, random results and any order of things: each run ends once; where nobody cancelled it, exactly what
// fails has failed, exactly what depends on that is skipped and all else is there, what a hint mends too; nothing is asked for before what it needs is there.
func TestRunsProperty(t *testing.T) {
	for range 20 { // of 100 checks: some orders are rare
		rapid.Check(t, checkRuns)
	}
}

func checkRuns(t *rapid.T) {
	s := &sim{
		T: t, policy: newPolicy(), builds: map[string]commands.Build{}, runs: map[string]commands.Run{}, known: map[uuid.UUID]bool{},
		bus: map[string][]Message{}, built: map[string]bool{}, plans: map[uuid.UUID]events.RunPlanned{}, fails: map[string]bool{},
		mends: map[string]bool{}, hinted: map[string]bool{}, recipes: map[string][]events.Recipe{},
	}
	s.save()

	// One world of packages; each run wants some of them, with all that those need.
	n := rapid.IntRange(1, 7).Draw(t, "packages")
	var nodes []events.Node
	var edges []events.Edge
	for i := range n {
		node := build(string(rune('a' + i)))
		switch rapid.IntRange(0, 7).Draw(t, "action") {
		case 0:
			node.Action, node.Wheel = "reuse", wheel(node.Name)
		case 1:
			node.Action = "skip"
		case 2, 3:
			s.fails[node.Name] = true
			s.hinted[node.Name] = rapid.Bool().Draw(t, "hinted") // and it does not help
		case 4:
			s.mends[node.Name], s.hinted[node.Name] = true, true
		}
		nodes = append(nodes, node)
		for j := range i {
			switch rapid.IntRange(0, 5).Draw(t, "edge") {
			case 0, 1:
				edges = append(edges, events.Edge{From: node.Key(), To: nodes[j].Key(), Kind: "build"})
			case 2:
				edges = append(edges, events.Edge{From: node.Key(), To: nodes[j].Key(), Kind: "runtime"})
			}
		}
	}
	submit := func() {
		run := uuid.NewSHA1(namespace, fmt.Append(nil, len(s.plans)))
		wanted := map[string]bool{}
		for _, node := range nodes {
			wanted[node.Key()] = rapid.Bool().Draw(t, "wanted")
		}
		for i := n - 1; i >= 0; i-- {
			for _, e := range edges {
				if e.From == nodes[i].Key() && wanted[e.From] {
					wanted[e.To] = true
				}
			}
		}
		plan := events.RunPlanned{Plan: run}
		for _, node := range nodes {
			if wanted[node.Key()] {
				plan.Nodes = append(plan.Nodes, node)
			}
		}
		for _, e := range edges {
			if wanted[e.From] {
				plan.Edges = append(plan.Edges, e)
			}
		}
		s.plans[run] = plan
		s.do(commands.SubmitRun{Run: run, Requirements: "x", Strategy: "pinned", Build: "all"})
		s.do(commands.LeasePlan{Run: run, Worker: "w", ExpiresAt: noon})
		if !s.do(commands.RecordPlan{
			Run: run, Attempt: 1, Plan: plan.Plan, Worker: "w", PythonTag: "cp311", PlatformTag: "any", Nodes: plan.Nodes, Edges: plan.Edges,
		}) {
			t.Fatal("the plan was refused")
		}
	}
	cancelled := map[uuid.UUID]bool{}
	for range rapid.IntRange(1, 3).Draw(t, "runs") {
		submit()
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 14).Draw(t, "step") {
			case 0:
				s.save()
			case 1:
				s.crash()
			case 2:
				ids := slices.SortedFunc(maps.Keys(s.plans), func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
				run := rapid.SampledFrom(ids).Draw(t, "cancel")
				cancelled[run] = cancelled[run] || s.do(commands.CancelRun{Run: run})
			case 3, 4, 5:
				if s.seen < len(s.log) {
					s.read()
				}
			case 12, 13:
				if s.judged < len(s.log) {
					s.judge()
				}
			case 14:
				s.judged = rapid.IntRange(0, s.judged).Draw(t, "judged") // it died, and reads again
			case 6, 7, 8:
				if len(s.bus) > 0 {
					s.deliver(rapid.SampledFrom(slices.Sorted(maps.Keys(s.bus))).Draw(t, "stream"))
				}
			default:
				if streams := s.workable(); len(streams) > 0 {
					s.work(rapid.SampledFrom(streams).Draw(t, "build"))
				}
			}
		}
	}
	// Now everything goes on until nothing is left to do.
	for steps := 0; ; steps++ {
		if steps > 20_000 {
			t.Fatal("it does not end")
		}
		if s.seen < len(s.log) {
			s.read()
		} else if s.judged < len(s.log) {
			s.judge()
		} else if len(s.bus) > 0 {
			s.deliver(slices.Sorted(maps.Keys(s.bus))[0])
		} else if streams := s.workable(); len(streams) > 0 {
			s.work(streams[0])
		} else {
			break
		}
	}

	finished := map[string][]events.RunFinished{}
	for _, m := range s.log {
		if e, ok := m.Event.(events.RunFinished); ok {
			finished[m.Stream] = append(finished[m.Stream], e)
		}
	}
	if len(s.policy.open)+len(s.policy.wanted) > 0 {
		t.Errorf("%d runs are open, %d builds wanted", len(s.policy.open), len(s.policy.wanted))
	}
	for stream, b := range s.builds {
		if b.Status == "planned" {
			t.Errorf("%s is %s for ever", stream, b.Status)
		}
	}
	for run, plan := range s.plans {
		got := finished[events.RunStream(run)]
		if len(got) != 1 {
			t.Fatalf("the run ended %d times", len(got))
		}
		if cancelled[run] {
			continue
		}
		want, state := map[string]string{}, "built"
		needs := commands.Needs(plan.Nodes, plan.Edges)
		for _, node := range plan.Nodes { // those that others need come first
			switch {
			case node.Action == "skip":
				continue
			case node.Action == "reuse":
				want[node.Key()] = "there"
			case slices.ContainsFunc(needs[node.Key()], func(d string) bool { return want[d] != "there" }):
				want[node.Key()], state = "skipped", "failed"
			case s.fails[node.Name]:
				want[node.Key()], state = "failed", "failed"
			default:
				want[node.Key()] = "there"
			}
		}
		have := map[string]string{}
		for _, e := range got[0].Manifest {
			have[e.Name+"/"+e.Version] = e.Status
			if e.Status == "built" || e.Status == "reused" {
				have[e.Name+"/"+e.Version] = "there"
				if e.SHA256 != wheel(e.Name).SHA256 {
					t.Errorf("%s has the wheel %s", e.Name, e.SHA256)
				}
			}
		}
		if fmt.Sprint(have) != fmt.Sprint(want) || got[0].State != state {
			t.Fatalf("the run is %s with %v, want %s with %v", got[0].State, have, state, want)
		}
	}
}
