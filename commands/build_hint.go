package commands

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/hints"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// MostHints is how many hints a verdict names.
const MostHints = 100

// Limits of a verdict.
const (
	mostHintText  = 500 // bytes of a line
	mostBuildFail = 100 // attempts that may fail
	mostWait      = 10 * time.Minute
	mostItems     = 100 // of one kind of recipe, as hints.CheckRecipe has it
)

// fix is how trying to mend a build stands.
type fix struct {
	unjudged int     // the failed attempt that waits for its verdict; 0: none
	failures int     // since somebody asked for the build
	last     symptom // of the last failure
	before   symptom // of the failure that hints were to mend
}

// symptom is how an attempt failed. The zero value is none.
type symptom struct {
	class  events.Class
	reason string // without what differs from attempt to attempt
	hint   string // the first that matched
}

var (
	folders = regexp.MustCompile(`(?:/[\w.+~-]+)+/`)
	numbers = regexp.MustCompile(`0x[0-9a-f]+|[0-9]+`)
)

func (f fix) failed(e events.BuildFailed) fix {
	reason := numbers.ReplaceAllString(folders.ReplaceAllString(strings.ToLower(e.Reason), ""), "#")
	f.unjudged, f.failures, f.last = e.Attempt, f.failures+1, symptom{class: e.Class, reason: reason}
	return f
}

func (f fix) judged(e events.BuildHinted) fix {
	f.unjudged, f.last.hint = 0, first(e.Hints)
	return f
}

func (f fix) queued(e events.BuildQueued) fix {
	if len(e.Hints) > 0 {
		f.before = f.last
	} else {
		f.failures, f.before = 0, symptom{}
	}
	return f
}

func first(matches []events.HintMatch) string {
	if len(matches) == 0 {
		return ""
	}
	return matches[0].Hint
}

// again says that a failure whose first matching hint is given is the one that was to be mended.
func (f fix) again(hint string) bool {
	return f.before.class != "" && f.last.class == f.before.class &&
		(f.last.reason == f.before.reason || hint != "" && hint == f.before.hint)
}

// HintBuild is the verdict on a failed attempt. It queues the build again when the hints bring recipes that were not in effect.
type HintBuild struct {
	Build    events.BuildID     `json:"build"`
	Attempt  int                `json:"attempt"`
	Hints    []events.HintMatch `json:"hints,omitempty"` // with all their recipes
	Most     int                `json:"most"`            // attempts that may fail before it is given up
	FailedAt time.Time          `json:"failed_at"`
	WaitMS   int64              `json:"wait_ms"` // before the second attempt; before each further one it is doubled
}

// Decide judges an attempt once.
func (c HintBuild) Decide(b Build) ([]events.BuildEvent, error) {
	if b.Status == "" {
		return nil, fault.New(fault.NotFound, "there is no such build")
	}
	if b.fix.unjudged != c.Attempt {
		return none[events.BuildEvent]() // judged already, or overtaken by another attempt
	}
	hinted := events.BuildHinted{Attempt: c.Attempt}
	matches, recipes := bring(c.Hints, b.recipes)
	switch {
	case b.waiting() || b.leased():
		hinted.Retry = true // somebody asked for it again before this
	case b.Status == "cancelled":
		hinted.Reason = "it was cancelled"
	case len(c.Hints) == 0:
		hinted.Reason = "no hint matches its log"
	case b.fix.again(first(c.Hints)):
		hinted.Reason = "it failed the same way although the recipes of hints were in effect"
	case recipes == nil:
		hinted.Reason = "the hints bring no recipe that was not in effect"
	case b.fix.failures >= c.Most:
		hinted.Reason = fmt.Sprintf("it failed %d times: MAX_ATTEMPTS allows no more", b.fix.failures)
	default:
		hinted.Hints, hinted.Retry = matches, true
		queued := events.BuildQueued{
			Run: b.run, Sdist: b.sdist, Constraints: b.constraints, Recipes: recipes, Priority: b.Priority, Retry: true,
			Hints: slices.Clone(b.hints), NotBefore: c.FailedAt.Add(min(time.Duration(c.WaitMS)*time.Millisecond<<min(b.fix.failures-1, 20), mostWait)),
		}
		for _, m := range matches {
			if len(m.Recipes) > 0 && !slices.Contains(queued.Hints, m.Hint) {
				queued.Hints = append(queued.Hints, m.Hint)
			}
		}
		return []events.BuildEvent{hinted, queued}, nil
	}
	for _, m := range c.Hints {
		m.Recipes = nil
		hinted.Hints = append(hinted.Hints, m)
	}
	return one[events.BuildEvent](hinted)
}

// bring returns the matches, each with what it adds to the recipes in effect, and all recipes together, one of a kind; nil when nothing
// is added. A version recipe says that nothing helps, so it adds nothing.
func bring(matches []events.HintMatch, effect []events.Recipe) (with []events.HintMatch, all []events.Recipe) {
	items := map[string][]string{}
	var kinds []string
	add := func(r events.Recipe) (added []string) {
		if !slices.Contains(kinds, r.Kind) {
			kinds = append(kinds, r.Kind)
		}
		for _, item := range r.Items {
			if !slices.Contains(items[r.Kind], item) && len(items[r.Kind]) < mostItems {
				items[r.Kind] = append(items[r.Kind], item)
				added = append(added, item)
			}
		}
		return added
	}
	for _, r := range effect {
		add(r)
	}
	news := false
	for _, m := range matches {
		recipes := m.Recipes
		m.Recipes = nil
		for _, r := range recipes {
			if r.Kind == "version" {
				continue
			}
			if added := add(r); len(added) > 0 {
				m.Recipes = append(m.Recipes, events.Recipe{Kind: r.Kind, Items: added})
				news = true
			}
		}
		with = append(with, m)
	}
	if !news {
		return with, nil
	}
	for _, k := range kinds {
		all = append(all, events.Recipe{Kind: k, Items: items[k]})
	}
	return with, all
}

// Name is the name on the bus.
func (HintBuild) Name() string { return "build.hint" }

// Stream is the build's.
func (c HintBuild) Stream() string { return c.Build.Stream() }

// Validate checks the shape.
func (c HintBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	k.Check(c.Attempt > 0, "/attempt", "is not a positive number")
	k.Check(c.Most > 0 && c.Most <= mostBuildFail, "/most", "is not between 1 and %d", mostBuildFail)
	k.Check(!c.FailedAt.IsZero(), "/failed_at", "is missing")
	k.Check(c.WaitMS >= 0 && c.WaitMS <= mostWait.Milliseconds(), "/wait_ms", "is negative or more than %v", mostWait)
	k.Check(len(c.Hints) <= MostHints, "/hints", "has more than %d items", MostHints)
	for i, m := range c.Hints {
		at := fmt.Sprintf("/hints/%d", i)
		checkHint(&k, at+"/hint", m.Hint)
		k.Check(m.Line >= 0, at+"/line", "is negative")
		k.Check(clean(m.Text, mostHintText), at+"/text", "is longer than %d bytes or not text", mostHintText)
		k.Check(len(m.Recipes) <= mostRecipes, at+"/recipes", "has more than %d items", mostRecipes)
		for j, r := range m.Recipes {
			hints.CheckRecipe(&k, fmt.Sprintf("%s/recipes/%d", at, j), r)
		}
	}
	return k.Err()
}

func init() {
	register[HintBuild]()
}
