package deptest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/wheelrefinery/refinery"

// rooms lists every package and what of ours it may import. Data flows one way (ARCHITECTURE.md); whoever adds an entry here
// should be able to say which way. Tests may import anything but cmd.
var rooms = map[string][]string{
	"events":      {},
	"eventlog":    {"events"},
	"hints":       {"events"},
	"commands":    {"events", "eventlog", "hints"},
	"bus":         {"events", "eventlog"},
	"projections": {"events", "eventlog"},
	"policies":    {"events", "eventlog", "commands", "bus", "hints"},
	"api":         {"internal/access"},
	"writeapi":    {"commands", "bus", "api", "eventlog", "events", "hints", "internal/wheel", "internal/wheelstore"}, // eventlog and events for the types of outcomes and facts
	"readapi":     {"events", "eventlog", "hints", "projections", "api"},                                              // eventlog for the type of outcomes
	"index":       {"api", "events", "projections", "internal/wheelstore"},
	"worker":      {"api", "bus", "events", "hints"}, // events for the type of recipes, which hints checks
	"ui":          {},
	"migrations":  {},

	"api/apitest":         {"api"},
	"bus/bustest":         {"bus"},
	"bus/delivery":        {"bus"},
	"bus/file":            {"bus", "bus/delivery", "bus/gather"},
	"bus/gather":          {"bus"},
	"bus/kafka":           {"bus", "bus/delivery"},
	"bus/redis":           {"bus", "bus/delivery", "bus/gather"},
	"bus/transport":       {"bus", "bus/file", "bus/kafka", "bus/redis"},
	"internal/access":     {},
	"internal/deptest":    {},
	"internal/health":     {"api", "bus", "eventlog", "projections"},
	"internal/metrics":    {"api", "bus", "eventlog", "projections"},
	"internal/fault":      {},
	"internal/pause":      {},
	"internal/pgtest":     {"internal/postgres", "migrations"},
	"internal/postgres":   {},
	"internal/testserver": {"internal/pgtest"},
	"internal/tracing":    {"api", "eventlog", "events"},
	"internal/wheel":      {"events"},
	"internal/wheelstore": {},

	"cmd/refinery": {"*"},
}

// shared may be imported by every package.
var shared = []string{"internal/fault", "internal/pause"}

// testsOnly may be imported by no package, whatever the table says; only by tests and by one another.
var testsOnly = []string{"bus/bustest", "internal/pgtest", "internal/testserver", "internal/deptest"}

type pkg struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func TestImports(t *testing.T) {
	lookAtSources(t)
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 2 {
		t.Fatalf("go list names %d packages", len(pkgs))
	}
	for _, problem := range check(pkgs) {
		t.Error(problem)
	}
}

// lookAtSources makes the result depend on the sources: go test repeats an earlier one unless a file has changed that the test
// itself looked at, and what go list reads does not count.
func lookAtSources(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); name == "node_modules" || name != ".." && strings.HasPrefix(name, ".") {
			return filepath.SkipDir
		}
		sources, err := filepath.Glob(filepath.Join(path, "*.go"))
		for _, source := range sources {
			if _, err := os.Stat(source); err != nil {
				return err
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func check(pkgs []pkg) (problems []string) {
	for _, p := range pkgs {
		name := ours(p.ImportPath)
		allowed, listed := rooms[name]
		if !listed {
			problems = append(problems, fmt.Sprintf("%s: not in the table of packages: add it to internal/deptest, with what it may import", name))
			continue
		}
		for _, path := range p.Imports {
			to := ours(path)
			switch {
			case to == "" || slices.Contains(shared, to):
			case slices.Contains(testsOnly, to) && !slices.Contains(testsOnly, name):
				problems = append(problems, fmt.Sprintf("%s: imports %s, which is for tests only", name, to))
			case strings.HasPrefix(to, "cmd/"):
				problems = append(problems, fmt.Sprintf("%s: imports %s", name, to))
			case !slices.Contains(allowed, to) && !slices.Contains(allowed, "*"):
				problems = append(problems, fmt.Sprintf("%s: may not import %s: it may import %s", name, to, strings.Join(append(allowed, shared...), ", ")))
			}
		}
		for _, path := range slices.Concat(p.TestImports, p.XTestImports) {
			if to := ours(path); strings.HasPrefix(to, "cmd/") && to != name {
				problems = append(problems, fmt.Sprintf("%s: a test imports %s", name, to))
			}
		}
	}
	return problems
}

// ours returns the path below the module, or "" for a package that is not ours.
func ours(path string) string {
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	return rest
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		p    pkg
		want string // part of the one problem, or none
	}{
		{pkg{ImportPath: "commands", Imports: []string{"fmt", "events", "eventlog", "internal/fault"}}, ""},
		{pkg{ImportPath: "commands", Imports: []string{"bus"}}, "commands: may not import bus"},
		{pkg{ImportPath: "commands", XTestImports: []string{"bus", "internal/pgtest"}}, ""},
		{pkg{ImportPath: "events", Imports: []string{"eventlog"}}, "events: may not import eventlog"},
		{pkg{ImportPath: "commands/sub"}, "commands/sub: not in the table"},
		{pkg{ImportPath: "readapi", TestImports: []string{"cmd/refinery"}}, "a test imports cmd/refinery"},
		{pkg{ImportPath: "cmd/refinery", Imports: []string{"worker", "internal/postgres"}, XTestImports: []string{"cmd/refinery"}}, ""},
		{pkg{ImportPath: "cmd/refinery", Imports: []string{"internal/pgtest"}}, "for tests only"},
		{pkg{ImportPath: "worker", Imports: []string{"internal/postgres"}}, "worker: may not import internal/postgres"},
	} {
		p := pkg{module + "/" + c.p.ImportPath, full(c.p.Imports), full(c.p.TestImports), full(c.p.XTestImports)}
		got := check([]pkg{p})
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%+v: problems %q, want %q", c.p, got, c.want)
		}
	}
}

func full(paths []string) (out []string) {
	for _, p := range paths {
		if p != "fmt" {
			p = module + "/" + p
		}
		out = append(out, p)
	}
	return out
}
