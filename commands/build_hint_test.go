package commands

import (
	"fmt"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

func recipe(kind string, items ...string) events.Recipe {
	return events.Recipe{Kind: kind, Items: items}
}

func match(hint string, recipes ...events.Recipe) events.HintMatch {
	return events.HintMatch{Hint: hint, Line: 7, Text: hint + " is missing", Recipes: recipes}
}

// verdict is a policy's on an attempt.
func verdict(attempt int, hints ...events.HintMatch) HintBuild {
	return HintBuild{Build: flask, Attempt: attempt, Hints: hints, Most: 3, FailedAt: noon, WaitMS: 1000}
}

func because(attempt int, class events.Class, reason string) events.BuildFailed {
	return events.BuildFailed{Attempt: attempt, Run: runA, Worker: "w1", Class: class, Reason: reason}
}

var (
	libpqMatch = match("libpq", recipe("apt", "libpq-dev"), recipe("dnf", "libpq-devel"))
	retryLibpq = events.BuildQueued{
		Run: runA, Sdist: source1, Constraints: pins, Recipes: []events.Recipe{recipe("apt", "ruby", "libpq-dev"), recipe("dnf", "libpq-devel")},
		Priority: 3, Retry: true, Hints: []string{"libpq"}, NotBefore: noon.Add(time.Second),
	}

	hGivenUp = extended(hFailed, events.BuildHinted{Attempt: 1, Reason: "no hint matches its log"})
	hTried   = extended(hFailed, events.BuildHinted{Attempt: 1, Hints: []events.HintMatch{libpqMatch}, Retry: true}, retryLibpq)
	hTried2  = extended(hTried, leased(2))
	hAlike   = extended(hTried2, because(2, events.ClassCompiler, "No GCC"))
	hElse    = extended(hTried2, because(2, events.ClassMissingLibrary, "no ssl"))
	hMended  = extended(hElse, events.BuildHinted{
		Attempt: 2, Hints: []events.HintMatch{match("ssl", recipe("apt", "libssl-dev"))}, Retry: true,
	}, events.BuildQueued{
		Run: runA, Sdist: source1, Constraints: pins, Priority: 3, Retry: true, Hints: []string{"libpq", "ssl"}, NotBefore: noon.Add(2 * time.Second),
		Recipes: []events.Recipe{recipe("apt", "ruby", "libpq-dev", "libssl-dev"), recipe("dnf", "libpq-devel")},
	}, leased(3))
)

func no(attempt int, reason string, hints ...events.HintMatch) events.BuildHinted {
	return events.BuildHinted{Attempt: attempt, Hints: hints, Reason: reason}
}

var buildHintScenarios = []scenario{
	{"of nothing", nil, verdict(1), nil, fault.NotFound, "no such build"},
	{"of what has not failed", hBuilding, verdict(1), nil, "", ""},
	{"without hints", hFailed, verdict(1), then(no(1, "no hint matches its log")), "", ""},
	{"twice", hGivenUp, verdict(1, libpqMatch), nil, "", ""},
	{
		"a hint with recipes", hFailed, verdict(1, libpqMatch),
		then(events.BuildHinted{Attempt: 1, Hints: []events.HintMatch{libpqMatch}, Retry: true}, retryLibpq), "", "",
	},
	{
		"only what is new is brought", hFailed, verdict(1, match("ruby", recipe("apt", "ruby")), match("both", recipe("apt", "ruby", "x11"))),
		then(events.BuildHinted{Attempt: 1, Hints: []events.HintMatch{match("ruby"), match("both", recipe("apt", "x11"))}, Retry: true}, events.BuildQueued{
			Run: runA, Sdist: source1, Constraints: pins, Recipes: []events.Recipe{recipe("apt", "ruby", "x11")}, Priority: 3, Retry: true,
			Hints: []string{"both"}, NotBefore: noon.Add(time.Second),
		}), "", "",
	},
	{
		"a hint whose recipe is in effect", hFailed, verdict(1, match("ruby", recipe("apt", "ruby"))),
		then(no(1, "the hints bring no recipe that was not in effect", match("ruby"))), "", "",
	},
	{
		"a hint that nothing helps", hFailed, verdict(1, match("old", recipe("version", "flask>=4"))),
		then(no(1, "the hints bring no recipe that was not in effect", match("old"))), "", "",
	},
	{
		"at the last attempt", hFailed,
		HintBuild{Build: flask, Attempt: 1, Hints: []events.HintMatch{libpqMatch}, Most: 1, FailedAt: noon, WaitMS: 1000},
		then(no(1, "it failed 1 times: MAX_ATTEMPTS allows no more", match("libpq"))), "", "",
	},
	{
		"the same reason again, with another hint", hAlike, verdict(2, match("ssl", recipe("apt", "libssl-dev"))),
		then(no(2, "it failed the same way although the recipes of hints were in effect", match("ssl"))), "", "",
	},
	{
		"the same hint again, with another reason", extended(hTried2, because(2, events.ClassCompiler, "no g++")),
		verdict(2, match("libpq", recipe("apt", "more"))),
		then(no(2, "it failed the same way although the recipes of hints were in effect", match("libpq"))), "", "",
	},
	{
		"another failure", hElse, verdict(2, match("ssl", recipe("apt", "libssl-dev"))),
		then(hMended[len(hMended)-3], hMended[len(hMended)-2]), "", "",
	},
	{
		"the third failure", extended(hMended, because(3, events.ClassCompiler, "no x")), verdict(3, match("x", recipe("apt", "x11"))),
		then(no(3, "it failed 3 times: MAX_ATTEMPTS allows no more", match("x"))), "", "",
	},
	{
		"failures count only since somebody asked", extended(hGivenUp, fullQueue, leased(2), because(2, events.ClassCompiler, "no gcc")),
		HintBuild{Build: flask, Attempt: 2, Hints: []events.HintMatch{libpqMatch}, Most: 2, FailedAt: noon, WaitMS: 1000},
		then(events.BuildHinted{Attempt: 2, Hints: []events.HintMatch{libpqMatch}, Retry: true}, retryLibpq), "", "",
	},
	{
		"after somebody asked for it again", extended(hFailed, events.BuildQueued{Run: runB, Retry: true}), verdict(1, libpqMatch),
		then(events.BuildHinted{Attempt: 1, Hints: []events.HintMatch{match("libpq")}, Retry: true}), "", "",
	},
	{
		"after it was cancelled", extended(hFailed, events.BuildCancelled{Reason: "no"}), verdict(1, libpqMatch),
		then(no(1, "it was cancelled", match("libpq"))), "", "",
	},
	{
		"a failure that nothing was done about does not count as one that hints did not mend",
		extended(hFailed, fullQueue, events.BuildHinted{Attempt: 1, Hints: []events.HintMatch{match("libpq")}, Retry: true}, leased(2), failed(2)),
		verdict(2, libpqMatch),
		then(events.BuildHinted{Attempt: 2, Hints: []events.HintMatch{libpqMatch}, Retry: true}, retryLibpq), "", "",
	},
	{"overtaken by a failure", extended(hFailed, fullQueue, leased(2), failed(2)), verdict(1, libpqMatch), nil, "", ""},
	{"overtaken by a success", extended(hFailed, fullQueue, leased(2), succeeded(2, wheel1, hash1)), verdict(1, libpqMatch), nil, "", ""},
	{
		"after another run planned it", extended(hFailed, events.BuildPlanned{Run: runA}), verdict(1, libpqMatch),
		then(events.BuildHinted{Attempt: 1, Hints: []events.HintMatch{libpqMatch}, Retry: true}, retryLibpq), "", "",
	},
	{
		"a success says which hints did it", hTried2, succeed2(),
		then(func() events.BuildSucceeded { e := succeeded(2, wheel1, hash1); e.Hints = []string{"libpq"}; return e }()), "", "",
	},
	{
		"a success that somebody asked for owes nothing to hints", extended(hTried2, because(2, events.ClassOther, "x"), no(2, "x"), fullQueue, leased(3)),
		func() SucceedBuild { c := succeed; c.Attempt = 3; return c }(), then(succeeded(3, wheel1, hash1)), "", "",
	},
}

func TestBuildHint(t *testing.T) { check(t, buildHintScenarios) }

// What differs from attempt to attempt does not make two failures differ.
func TestSymptom(t *testing.T) {
	for _, same := range [][2]string{
		{"cannot open /tmp/box-123/x.c", "cannot open /tmp/box-9/x.c"}, {"killed after 17 s", "killed after 18 s"}, {"at 0xdeadbeef", "at 0x12"},
	} {
		a, b := fix{}.failed(because(1, events.ClassOther, same[0])), fix{}.failed(because(2, events.ClassOther, same[1]))
		if a.last != b.last {
			t.Errorf("%q and %q are taken for two failures: %v %v", same[0], same[1], a.last, b.last)
		}
	}
	a, b := fix{}.failed(because(1, events.ClassOther, "the header a.h is missing")), fix{}.failed(because(2, events.ClassOther, "the header b.h is missing"))
	if a.last == b.last {
		t.Error("two headers are taken for one")
	}
}

// However often it failed, and however long one is to wait: the next attempt is soon enough.
func TestWaitIsBounded(t *testing.T) {
	b := Build{Status: "failed", fix: fix{unjudged: 90, failures: 90}}
	c := verdict(90, libpqMatch)
	c.Most, c.WaitMS = 100, mostWait.Milliseconds()
	decided, err := c.Decide(b)
	if err != nil || len(decided) != 2 || decided[1].(events.BuildQueued).NotBefore != noon.Add(mostWait) {
		t.Errorf("%+v, %v", decided, err)
	}
}

// However many hints match, what they bring together can be queued.
func TestBringIsBounded(t *testing.T) {
	var matches []events.HintMatch
	for i := range 100 {
		matches = append(matches, match("h", recipe("apt", fmt.Sprint("a", i), fmt.Sprint("b", i)), recipe("pip", fmt.Sprint("c", i))))
	}
	_, all := bring(matches, nil)
	if err := (EnqueueBuild{Build: flask, Recipes: all}).Validate(); err != nil || len(all) != 2 {
		t.Error(err, len(all))
	}
}
