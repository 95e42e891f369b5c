package commands

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// whole holds a valid command of each kind with every field set, so that each field can be spoilt in turn.
var whole = []Command{
	PlanBuild{flask, runA, source1},
	EnqueueBuild{flask, runA, source1, pins, aptRuby, 3, true},
	LeaseBuild{flask, "w1", noon},
	StartBuild{flask, 1},
	succeed,
	fail,
	lost,
	CancelBuild{flask, runA, "no", true, 7},
	RetryBuild{flask, aptRuby, &five},
	ChangePriority{flask, 5},
	SkipBuild{flask, runA, "no"},
	ReuseBuild{flask, runA, wheel1, true},
	submit,
	LeasePlan{runA, "w1", noon},
	lostPlan,
	func() Command {
		c := record
		c.Nodes = slices.Clone(nodes)
		c.Nodes[0].Wheel, c.Nodes[0].Own, c.Nodes[0].RequiresPython, c.Nodes[0].Constraints = &wheel1, true, ">=3.8", pins
		c.Edges = []events.Edge{{From: "flask/3.0.0", To: "flask/3.0.0", Kind: "runtime"}}
		return c
	}(),
	noPlan,
	CancelRun{runA, "no"},
	func() Command {
		c := finish
		c.Manifest = []events.ManifestEntry{wholeEntry}
		return c
	}(),
	RecordManifest{runA, "w1", []events.ManifestEntry{wholeEntry}},
	chunk(1, "a\n"),
	publish(hash1, flask, 1),
	YankArtifact{wheel1.Filename, true, "no"},
	bulkRetry,
	ProgressBulk{runA, 1, 2},
	RequestTrigger{runA, true, 1},
	recordFailed,
	RebuildProjection{"builds"},
	MendProjection{"builds", 1, true},
	RequestSmoke{runA},
	LeaseSmoke{runA, "w1"},
	smokeRecord,
	ExpireSmoke{runA},
	ClearQueue{true, "no"},
	PauseQueue{"no"},
	ResumeQueue{},
	registerW,
	SaveHint{Hint: wholeHint, Expected: 1, Shipped: true},
	DeleteHint{"libpq", 1},
	HintBuild{flask, 1, []events.HintMatch{libpqMatch}, 3, noon, 1},
}

var wholeHint = events.Hint{
	ID: "libpq", Pattern: "libpq-fe", Recipes: aptRuby, Note: "n", Tags: []string{"c"}, Severity: "error", Confidence: 0.5, Examples: []string{"libpq-fe.h"},
	AppliesTo: events.AppliesTo{
		Platforms: []string{"linux"}, Arch: []string{"x86_64"}, PythonVersions: []string{"3.11"}, BuildBackends: []string{"flit_core.buildapi"},
		Packages: []string{"flask"},
	},
}

var wholeEntry = events.ManifestEntry{
	Name: "flask", Version: "3.0.0", PythonTag: "cp311", PlatformTag: "any", Status: "built", Wheel: wheel1.Filename, SHA256: hash1, Size: 1,
	DurationMS: 1, Reason: "no",
}

// leaf is a place in a command, by JSON pointer. set works on a copy of the command and says what Validate finds there.
type leaf struct {
	command Command
	pointer string
	kind    reflect.Type
	find    func(reflect.Value) reflect.Value // the place in a command
	set     func(value any) error
}

func (l leaf) String() string { return l.command.Name() + " " + l.pointer }

// leaves lists every place of c. Pointers to map entries name the map.
func leaves(t testing.TB, c Command) (all []leaf) {
	payload, err := Encode(Meta{ID: uuid.New(), Actor: "tester"}, c)
	if err != nil {
		t.Fatalf("%s: %v", c.Name(), err)
	}
	var walk func(typ reflect.Type, pointer string, find func(reflect.Value) reflect.Value)
	add := func(typ reflect.Type, pointer string, find func(reflect.Value) reflect.Value) {
		all = append(all, leaf{c, pointer, typ, find, func(value any) error {
			_, fresh, err := Decode(payload)
			if err != nil {
				return err
			}
			root := reflect.New(reflect.TypeOf(fresh)).Elem()
			root.Set(reflect.ValueOf(fresh))
			find(root).Set(reflect.ValueOf(value).Convert(typ))
			return root.Interface().(Command).Validate()
		}})
	}
	walk = func(typ reflect.Type, pointer string, find func(reflect.Value) reflect.Value) {
		switch typ.Kind() {
		case reflect.Pointer:
			walk(typ.Elem(), pointer, func(v reflect.Value) reflect.Value { return find(v).Elem() })
		case reflect.Struct:
			if typ == reflect.TypeOf(noon) {
				add(typ, pointer, find)
				return
			}
			for i := range typ.NumField() {
				name, _, tagged := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
				at := pointer + "/" + name
				if typ.Field(i).Anonymous && !tagged && name == "" {
					at = pointer
				}
				walk(typ.Field(i).Type, at, func(v reflect.Value) reflect.Value { return find(v).Field(i) })
			}
		case reflect.Slice:
			add(typ, pointer, find)
			walk(typ.Elem(), pointer+"/0", func(v reflect.Value) reflect.Value { return find(v).Index(0) })
		case reflect.String, reflect.Int, reflect.Int64, reflect.Float64, reflect.Map, reflect.Array:
			add(typ, pointer, find)
		case reflect.Bool: // cannot be bad
		default:
			t.Fatalf("%s: %v", pointer, typ)
		}
	}
	walk(reflect.TypeOf(c), "", func(v reflect.Value) reflect.Value { return v })
	return all
}

// refuse checks that value is refused at l, by a field that names the place.
func refuse(t *testing.T, l leaf, value any) {
	t.Helper()
	short := fmt.Sprintf("%#v", value)
	short = short[:min(len(short), 60)]
	err := l.set(value)
	if err == nil {
		t.Errorf("%s: %s is taken", l, short)
		return
	}
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Code != fault.Invalid {
		t.Errorf("%s: %s gives %v", l, short, err)
		return
	}
	// A node's or an entry's key is made of its fields, so what is wrong with them may show at an edge as well: one right place is enough.
	if !slices.ContainsFunc(f.Fields, func(f fault.Field) bool {
		return f.Pointer == l.pointer || strings.HasPrefix(l.pointer, f.Pointer+"/") || strings.HasPrefix(f.Pointer, l.pointer+"/")
	}) {
		t.Errorf("%s: %s is refused at %v", l, short, f.Fields)
	}
	for _, f := range f.Fields {
		if s, ok := value.(string); ok && len(s) > 8 && strings.Contains(f.Detail, s) {
			t.Errorf("%s: the value is echoed", l)
		}
	}
}

func everyLeaf(t *testing.T, f func(t *testing.T, l leaf)) {
	seen := map[string]bool{}
	for _, c := range whole {
		seen[c.Name()] = true
		for _, l := range leaves(t, c) {
			f(t, l)
		}
	}
	for name := range kinds {
		if !seen[name] && !strings.HasPrefix(name, "test.") {
			t.Errorf("no whole command for %s", name)
		}
	}
}

// Not checked, since no decision uses them: who holds a lease is known from the stream.
var unused = []string{"build.release /worker", "run.release_plan /worker"}

// No string may hold what Postgres does not store, or be of any length.
func TestValidateText(t *testing.T) {
	everyLeaf(t, func(t *testing.T, l leaf) {
		if l.kind.Kind() != reflect.String || slices.Contains(unused, l.String()) {
			return
		}
		for _, bad := range []string{"a\x00b", "\x00", "a\xff", "\xed\xa0\x80", strings.Repeat("a", mostRequirements+1)} {
			refuse(t, l, bad)
		}
	})
}

// What names a thing ends in streams, addresses and paths, and has one spelling.
func TestValidateForms(t *testing.T) {
	paths := []string{"../x", "..", ".", "/", "a/b", "/etc/passwd", `a\b`, `..\x`, "a b", "a\n", " a", "a%2fb", "ä"}
	bad := map[string][]string{
		"name":        {"", "Flask", "a_b", "a.b", "a--b", "-a", "a-", "a-.-b", strings.Repeat("a", 201)},
		"version":     {"", "v1", "1/2", "1_0", "1.0A", strings.Repeat("1", 101)},
		"python_tag":  {"", "cp311-cp311", "cp311.", ".cp311", "a..b", strings.Repeat("a", 51)},
		"platform":    {"a-b", "any.", "a..b", strings.Repeat("a", 101)},
		"sha256":      {"abc", hash1[1:], hash1 + "1", strings.ToUpper(strings.Repeat("a", 64)), "sha256:" + hash1, hash1 + "\n"},
		"filename":    {"", ".whl", "-x.whl", "a.whl/", strings.Repeat("a", 301)},
		"backend":     {"a b", "a;b", "a/b", strings.Repeat("a", 301)},
		"worker":      {"", "-w", ".w", strings.Repeat("a", 101)},
		"python":      {"3", "2.7", "3.", "3.1111", "3.11.2", "4.0"},
		"tags/0":      {"", "py3", "py3-none", "py3-none-any-x"},
		"kind":        {"", "APT", "brew", "version"},
		"items/0":     {"", "-y", "--reinstall", "https://files.example/x.deb", "ruby;reboot", "$(reboot)"},
		"action":      {"", "Build", "rebuild"},
		"reason code": {"", "Asked", "two words", "-a", "a-", "a--b", strings.Repeat("a", 51)},
		"status":      {"", "Built", "queued"},
		"state":       {"", "Built", "planned"},
		"strategy":    {"", "newest"},
		"class":       {"", "Compiler", "bug"},
		"build mode":  {"", "none"},
		"hint":        {"", ".a", strings.Repeat("a", 101)},
		"hint tag":    {"", "-a", strings.Repeat("a", 51)},
		"severity":    {"", "Error", "fatal"},
		"projection":  {"", "Builds", "a-b", "1a", strings.Repeat("a", 61)},
	}
	forms := map[string]string{
		"platform_tag": "platform", "metadata_sha256": "sha256", "sdist_sha256": "sha256", "wheel": "filename", "project": "name", "names/0": "name",
		"packages/0": "name", "python_versions/0": "python", "id": "hint",
	}
	everyLeaf(t, func(t *testing.T, l leaf) {
		if l.kind.Kind() != reflect.String || slices.Contains(unused, l.String()) {
			return
		}
		parts := strings.Split(l.pointer, "/")
		last := parts[len(parts)-1]
		if last == "0" {
			last = parts[len(parts)-2] + "/0"
		}
		form := last
		switch {
		case forms[last] != "":
			form = forms[last]
		case l.String() == "worker.register /version", last == "reason" && !strings.Contains(l.pointer, "nodes"):
			return // free text
		case last == "reason":
			form = "reason code"
		case l.String() == "hint.save /tags/0":
			form = "hint tag"
		case l.String() == "run.submit /build":
			form = "build mode"
		}
		for _, value := range bad[form] {
			optional := value == "" && (last == "wheel" || l.pointer == "/platform" || last == "sha256" && strings.Contains(l.command.Name(), "manifest"))
			advice := value == "version" && strings.Contains(l.command.Name(), "hint") // which a hint may give
			if !optional && !advice {
				refuse(t, l, value)
			}
		}
		if bad[form] != nil {
			for _, value := range paths {
				refuse(t, l, value)
			}
		} else if !slices.Contains([]string{"url", "requires_python", "constraints/0", "from", "to", "requirements", "constraints", "text", "host", "evidence/0", "detail/0", "warnings/0", "failures/0", "python_version", "uv", "gcc", "program", "user", "pattern", "note", "examples/0", "platforms/0", "arch/0", "build_backends/0"}, last) {
			t.Errorf("%s has no form: say that it is free text, or what is bad", l)
		}
	})
}

// Numbers are within what the columns hold, lists within their limits, ids and times are there.
func TestValidateNumbersAndLists(t *testing.T) {
	// An attempt is compared with the one that the stream knows.
	held := []string{"build.start", "build.succeed", "build.fail", "build.release", "run.release_plan", "run.record_plan", "run.fail_plan"}
	everyLeaf(t, func(t *testing.T, l leaf) {
		switch l.kind.Kind() {
		case reflect.Int, reflect.Int64:
			if !strings.HasSuffix(l.pointer, "/attempt") || !slices.Contains(held, l.command.Name()) {
				refuse(t, l, math.MinInt64)
			}
		case reflect.Float64:
			refuse(t, l, -0.1)
			refuse(t, l, 1.1)
			refuse(t, l, math.NaN())
		case reflect.Slice:
			item := l.find(reflect.ValueOf(l.command)).Index(0)
			many := reflect.MakeSlice(l.kind, 0, 50_001)
			for range 50_001 {
				many = reflect.Append(many, item)
			}
			refuse(t, l, many.Interface())
		case reflect.Map:
			refuse(t, l, map[string]int{"nul\x00": 1})
			refuse(t, l, map[string]int{"built": -1})
		case reflect.Struct:
			if l.pointer != "/started_at" && l.pointer != "/retry_at" { // only shown; absent after the last attempt
				refuse(t, l, reflect.Zero(l.kind).Interface())
			}
		}
	})
	for _, l := range leaves(t, submit) {
		if l.pointer == "/run" {
			refuse(t, l, uuid.Nil)
		}
	}
}

func TestValidateCombinations(t *testing.T) {
	names, none := submit, submit
	names.Build = "all"
	none.Names = nil
	empty := submit
	empty.Requirements = ""
	noSdist, noWheel, twice, stranger, noPlanID := record, record, record, record, record
	noSdist.Nodes = []events.Node{nodes[0]}
	noSdist.Nodes[0].Sdist = nil
	noWheel.Nodes = []events.Node{nodes[0]}
	noWheel.Nodes[0].Action = "reuse"
	twice.Nodes = []events.Node{nodes[0], nodes[0]}
	twice.Nodes[1].PythonTag = "cp312"
	stranger.Edges = []events.Edge{{From: "flask/3.0.0", To: "jinja2/3.1", Kind: "build"}}
	noPlanID.Plan = uuid.Nil
	for pointer, c := range map[string]Command{
		"/names": names, "/names ": none, "/requirements": empty, "/nodes/0/sdist": noSdist, "/nodes/0/wheel": noWheel, "/nodes/1": twice,
		"/edges/0/to": stranger, "/plan": noPlanID, "/entries": RecordManifest{Run: runA, Worker: "w1"}, "/text": chunk(0, ""),
		"/slots": changed(func(c *RegisterWorker) { c.Slots = 0 }), "/reason": FailPlan{Worker: "w1", Class: events.ClassOther},
	} {
		pointer = strings.TrimSpace(pointer)
		var f *fault.Error
		if err := c.Validate(); !errors.As(err, &f) || len(f.Fields) != 1 || f.Fields[0].Pointer != pointer {
			t.Errorf("%s: %v, want one reason at %s", c.Name(), err, pointer)
		}
	}
}

// Recipes keep to the grammar of their kind, since workers run what they say.
func TestValidateRecipes(t *testing.T) {
	for _, c := range []struct {
		kind, item, pointer string
	}{
		{"apt", "libpq-dev", ""},
		{"dnf", "libpq-devel", ""},
		{"pip", "setuptools-scm[toml]>=6", ""},
		{"constraint", "cython<3", ""},
		{"env", "CFLAGS=-O1 -g", ""},
		{"apt", "--purge", "/recipes/0/items/0"},
		{"dnf", "libpq devel", "/recipes/0/items/0"},
		{"pip", "--index-url=https://files.example", "/recipes/0/items/0"},
		{"constraint", "cython @ https://files.example/x.whl", "/recipes/0/items/0"},
		{"env", "LD_PRELOAD=x.so", "/recipes/0/items/0"},
		{"version", "aiohttp>=3.8.3", "/recipes/0/kind"},
	} {
		enqueue := EnqueueBuild{Build: flask, Recipes: []events.Recipe{{Kind: c.kind, Items: []string{c.item}}}}
		var f *fault.Error
		if err := enqueue.Validate(); c.pointer == "" && err != nil || c.pointer != "" && (!errors.As(err, &f) || len(f.Fields) != 1 || f.Fields[0].Pointer != c.pointer) {
			t.Errorf("%s %s: %v", c.kind, c.item, err)
		}
	}
}

// Every reason is given at once.
func TestValidateSaysAll(t *testing.T) {
	var f *fault.Error
	if err := (LeaseBuild{}).Validate(); !errors.As(err, &f) || len(f.Fields) != 6 || !strings.Contains(f.Message, "and 5 more") {
		t.Errorf("%v", err)
	}
}

// A name that is taken is the normal form: otherwise one project has two streams.
func TestValidNamesAreNormal(t *testing.T) {
	for _, name := range []string{"a", "a1", "1", "zope-interface", "a-b-c", "backports-zoneinfo"} {
		if !form(name, nameForm, 200) || events.NormalizeName(name) != name {
			t.Errorf("%s is refused", name)
		}
	}
}
