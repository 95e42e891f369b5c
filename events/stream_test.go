package events

import (
	"testing"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStreamNames(t *testing.T) {
	part := rapid.StringMatching(`[A-Za-z0-9._+!-]{1,20}`)
	rapid.Check(t, func(t *rapid.T) {
		id := BuildID{part.Draw(t, "name"), part.Draw(t, "version"), part.Draw(t, "python"), part.Draw(t, "platform")}
		attempt := rapid.IntRange(1, 1<<30).Draw(t, "attempt")
		run := uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "run"))
		if got, ok := ParseBuild(id.Stream()); !ok || got != id {
			t.Errorf("%s was read as %v, %v", id.Stream(), got, ok)
		}
		if got, n, ok := ParseLog(id.Log(attempt)); !ok || got != id || n != attempt {
			t.Errorf("%s was read as %v, %d, %v", id.Log(attempt), got, n, ok)
		}
		if got, ok := ParseRun(RunStream(run)); !ok || got != run {
			t.Errorf("%s was read as %v, %v", RunStream(run), got, ok)
		}
	})
}

// No stream of one kind is read as one of another, and only the form that is written is read.
func TestStreamNamesOfOthers(t *testing.T) {
	const id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	for _, s := range []string{
		"", "build", "build/", "build/a/1/cp311", "build/a/1/cp311/any/x", "builds/a/1/cp311/any", "/build/a/1/cp311/any", "log/a/1/cp311/any/1",
		"run/" + id, QueueStream, WorkerStream("w"), ArtifactStream("a.whl"),
	} {
		if got, ok := ParseBuild(s); ok {
			t.Errorf("%q was read as the build %v", s, got)
		}
	}
	for _, s := range []string{
		"", "log/", "log/1", "log/a/1/cp311/any", "log/a/1/cp311/any/", "log/a/1/cp311/any/0", "log/a/1/cp311/any/-1", "log/a/1/cp311/any/x",
		"log/a/1/cp311/any/+1", "log/a/1/cp311/any/01", "log/a/1/cp311/any/99999999999999999999", "log/a/1/cp311/any/1/1", "build/a/1/cp311/any",
	} {
		if got, n, ok := ParseLog(s); ok {
			t.Errorf("%q was read as the log of %v, attempt %d", s, got, n)
		}
	}
	for _, s := range []string{
		"", "run/", "run/" + id[1:], "run/" + id + "0", "run/{" + id + "}", "run/6BA7B810-9DAD-11D1-80B4-00C04FD430C8", "runs" + id,
		"run/6ba7b8109dad11d180b400c04fd430c8", "run/6ba7b810x9dad-11d1-80b4-00c04fd430c8", "log/" + id,
	} {
		if got, ok := ParseRun(s); ok {
			t.Errorf("%q was read as the run %v", s, got)
		}
	}
}

func TestNormalizeName(t *testing.T) {
	for name, want := range map[string]string{ // the examples of PEP 503
		"friendly-bard": "friendly-bard", "Friendly-Bard": "friendly-bard", "FRIENDLY-BARD": "friendly-bard",
		"friendly.bard": "friendly-bard", "friendly_bard": "friendly-bard", "friendly--bard": "friendly-bard", "FrIeNdLy-._.-bArD": "friendly-bard",
	} {
		if got := NormalizeName(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		once := NormalizeName(rapid.String().Draw(t, "name"))
		if twice := NormalizeName(once); twice != once {
			t.Errorf("%q became %q", once, twice)
		}
	})
}
