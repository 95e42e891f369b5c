package commands

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// scenario says what a command does to a stream: then, or a refusal with code and a part of its text.
type scenario struct {
	name    string
	given   []events.Event
	when    Command
	then    []events.Event
	refused fault.Code
	text    string
}

// run decides sc and returns the events and the state after them.
func (sc scenario) run(t *testing.T) (evs []events.Event, state any, err error) {
	t.Helper()
	k := kinds[sc.when.Name()]
	state = k.zero
	for _, e := range sc.given {
		if reflect.DeepEqual(k.fold(state, e), state) && reflect.TypeOf(state) != reflect.TypeFor[Queue]() {
			t.Errorf("given: %#v changes nothing: is it of this stream?", e)
		}
		state = k.fold(state, e)
	}
	evs, err = k.decide(state, sc.when)
	for _, e := range evs {
		state = k.fold(state, e)
	}
	return evs, state, err
}

var everything = cmp.Exporter(func(reflect.Type) bool { return true })

func check(t *testing.T, scenarios []scenario) {
	for _, sc := range scenarios {
		t.Run(sc.when.Name()+"/"+strings.ReplaceAll(sc.name, " ", "_"), func(t *testing.T) {
			if err := sc.when.Validate(); err != nil {
				t.Fatalf("when: %v", err)
			}
			got, _, err := sc.run(t)
			if sc.refused != "" {
				if fault.CodeOf(err) != sc.refused || !strings.Contains(err.Error(), sc.text) || sc.text == "" || got != nil {
					t.Fatalf("%#v, %v; want a refusal: %s … %s …", got, err, sc.refused, sc.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(sc.then, got, everything); d != "" && len(sc.then)+len(got) > 0 {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func allScenarios() []scenario {
	return slices.Concat(buildScenarios, runScenarios, logScenarios, artifactScenarios, queueScenarios, workerScenarios, hintScenarios, buildHintScenarios)
}

// A command without a scenario, or an event that no scenario ends in, is not tested.
func TestEveryCommandHasScenarios(t *testing.T) {
	commands, outcomes := map[string]bool{}, map[string]bool{}
	for _, sc := range allScenarios() {
		commands[sc.when.Name()] = true
		for _, e := range sc.then {
			outcomes[e.Name()] = true
		}
	}
	for name := range kinds {
		if !commands[name] && !strings.HasPrefix(name, "test.") {
			t.Errorf("no scenario for %s", name)
		}
	}
	for _, e := range events.All() {
		if !outcomes[e.Name()] {
			t.Errorf("no scenario ends in %s", e.Name())
		}
	}
}

// Whatever a scenario decides can be stored, and its state is a result that can be answered with.
func TestScenariosEncode(t *testing.T) {
	for _, sc := range allScenarios() {
		payload, err := Encode(Meta{ID: uuid.New(), Actor: "tester"}, sc.when)
		if err != nil {
			t.Errorf("%s: %v", sc.name, err)
			continue
		}
		if _, c, err := Decode(payload); err != nil {
			t.Errorf("%s: %v", sc.name, err)
		} else if d := cmp.Diff(sc.when, c, everything); d != "" {
			t.Errorf("%s changes on the bus:\n%s", sc.name, d)
		}
		for _, e := range slices.Concat(sc.given, sc.then) {
			if _, err := events.Encode(e); err != nil {
				t.Errorf("%s: %v", sc.name, err)
			}
		}
	}
}

// What scenarios are made of.
var (
	flask    = events.BuildID{Name: "flask", Version: "3.0.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
	runA     = uuid.MustParse("aaaaaaaa-0000-4000-8000-000000000000")
	runB     = uuid.MustParse("bbbbbbbb-0000-4000-8000-000000000000")
	plan1    = uuid.MustParse("11111111-0000-4000-8000-000000000000")
	noon     = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	hash1    = strings.Repeat("1", 64)
	hash2    = strings.Repeat("2", 64)
	source1  = &events.File{Filename: "flask-3.0.0.tar.gz", URL: "https://files.example/flask-3.0.0.tar.gz", SHA256: hash1, Size: 10}
	source2  = &events.File{Filename: "flask-3.0.0.tar.gz", URL: "https://files.example/flask-3.0.0.tar.gz", SHA256: hash2, Size: 11}
	wheel1   = events.File{Filename: "flask-3.0.0-py3-none-any.whl", URL: "/artifacts/flask-3.0.0-py3-none-any.whl", SHA256: strings.Repeat("a", 64), Size: 20}
	wheel2   = events.File{Filename: "flask-3.0.0-py3-none-any.whl", URL: "/artifacts/flask-3.0.0-py3-none-any.whl", SHA256: strings.Repeat("b", 64), Size: 21}
	pins     = []string{"setuptools==75.0.0"}
	aptRuby  = []events.Recipe{{Kind: "apt", Items: []string{"ruby"}}}
	given    = func(es ...events.Event) []events.Event { return es }
	then     = given
	extended = func(es []events.Event, more ...events.Event) []events.Event { return slices.Concat(es, more) }
)
