package commands

import (
	"fmt"
	"regexp"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/hints"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Limits of what commands carry.
const (
	mostReason   = 2_000 // bytes
	mostEvidence = 40    // lines
	mostLine     = 4_000 // bytes
	mostPins     = 500
	mostRecipes  = 20
	mostPriority = 1_000_000
)

var (
	nameForm    = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)                             // PEP 503, normalised
	versionForm = regexp.MustCompile(`^[0-9][a-z0-9.+!-]*$`)                                 // PEP 440, normalised; its parts are the planner's business
	tagForm     = regexp.MustCompile(`^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$`)                    // PEP 425; never "..", since it ends in paths
	hashForm    = regexp.MustCompile(`^[0-9a-f]{64}$`)                                       // SHA-256
	fileForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+!-]*$`)                       // a file name without folders
	workerForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)                         //
	backendForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_.]*)?$`) // a module, and an object in it (PEP 517)
	pythonForm  = regexp.MustCompile(`^3\.[0-9]{1,2}$`)
	reasonForm  = regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)
	tripleForm  = regexp.MustCompile(`^[a-z0-9_]+-[a-z0-9_]+-[a-z0-9_.]+$`)
)

func form(s string, r interface{ MatchString(string) bool }, n int) bool {
	return len(s) <= n && r.MatchString(s)
}

func checkBuild(k *fault.Checks, at string, b events.BuildID) {
	k.Check(form(b.Name, nameForm, 200), at+"/name", "is not a normalised project name (PEP 503) of at most 200 characters")
	k.Check(form(b.Version, versionForm, 100), at+"/version", "is not a normalised version (PEP 440) of at most 100 characters")
	k.Check(form(b.PythonTag, tagForm, 50), at+"/python_tag", "is not a python tag (PEP 425) of at most 50 characters")
	k.Check(form(b.PlatformTag, tagForm, 100), at+"/platform_tag", "is not a platform tag (PEP 425) of at most 100 characters")
}

func checkFile(k *fault.Checks, at string, f *events.File) {
	if f == nil {
		return
	}
	k.Check(form(f.Filename, fileForm, 300), at+"/filename", "is not a file name of at most 300 characters")
	k.Check(clean(f.URL, 2000), at+"/url", "is longer than 2000 bytes or not text")
	k.Check(hashForm.MatchString(f.SHA256), at+"/sha256", "is not a SHA-256 in 64 lower-case hex digits")
	k.Check(f.Size >= 0, at+"/size", "is negative")
}

func checkWorker(k *fault.Checks, w string) {
	k.Check(form(w, workerForm, 100), "/worker", "is not a worker id: letters, digits, '.', '_', '-', at most 100")
}

func checkClass(k *fault.Checks, c events.Class) {
	for _, known := range events.Classes {
		if c == known {
			return
		}
	}
	k.Check(false, "/class", "is not one of %v", events.Classes)
}

func checkLines(k *fault.Checks, at string, lines []string, most int) {
	k.Check(len(lines) <= most, at, "has more than %d items", most)
	for i, l := range lines {
		k.Check(clean(l, mostLine), fmt.Sprintf("%s/%d", at, i), "is longer than %d bytes or not text", mostLine)
	}
}

func checkEffort(k *fault.Checks, ms int64, lines int) {
	k.Check(ms >= 0, "/duration_ms", "is negative")
	k.Check(lines >= 0, "/log_lines", "is negative")
}

func checkReason(k *fault.Checks, reason string) {
	k.Check(clean(reason, mostReason), "/reason", "is longer than %d bytes or not text", mostReason)
}

func checkRecipes(k *fault.Checks, recipes []events.Recipe) {
	k.Check(len(recipes) <= mostRecipes, "/recipes", "has more than %d items", mostRecipes)
	for i, r := range recipes {
		at := fmt.Sprintf("/recipes/%d", i)
		hints.CheckRecipe(k, at, r)
		k.Check(r.Kind != "version", at+"/kind", "is advice for people: a build cannot follow it")
	}
}

func checkPriority(k *fault.Checks, p int) {
	k.Check(p >= -mostPriority && p <= mostPriority, "/priority", "is not between -%d and %d", mostPriority, mostPriority)
}
