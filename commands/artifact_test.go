package commands

import (
	"testing"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

var (
	published = events.ArtifactPublished{
		Filename: wheel1.Filename, SHA256: hash1, Size: 20, Project: "flask", Version: "3.0.0", Tags: []string{"py3-none-any"},
		RequiresPython: ">=3.8", MetadataSHA256: hash2, Build: flask, Attempt: 1,
	}
	yanked      = events.ArtifactYanked{Reason: "bad"}
	republished = func() events.ArtifactPublished { e := published; e.SHA256, e.Attempt = hash2, 2; return e }()
)

func publish(sha256 string, build events.BuildID, attempt int) PublishArtifact {
	return PublishArtifact{
		Filename: wheel1.Filename, SHA256: sha256, Size: 20, Project: "flask", Version: "3.0.0", Tags: []string{"py3-none-any"},
		RequiresPython: ">=3.8", MetadataSHA256: hash2, Build: build, Attempt: attempt,
	}
}

var flask312 = events.BuildID{Name: "flask", Version: "3.0.0", PythonTag: "cp312", PlatformTag: "linux_x86_64"}

var artifactScenarios = []scenario{
	{"new", nil, publish(hash1, flask, 1), then(published), "", ""},
	{"twice", given(published), publish(hash1, flask, 1), nil, "", ""},
	{"the same bytes of a later attempt", given(published), publish(hash1, flask, 2), nil, "", ""},
	{"the same bytes of another target", given(published), publish(hash1, flask312, 1), nil, "", ""},
	{"other bytes of a later attempt", given(published), publish(hash2, flask, 2), then(republished), "", ""},
	{"a yanked wheel, built anew", given(published, yanked), publish(hash2, flask, 2), then(republished), "", ""},
	{"of nothing", nil, YankArtifact{wheel1.Filename, true, "bad"}, nil, fault.NotFound, "no such wheel"},
	{"new", given(published), YankArtifact{wheel1.Filename, true, "bad"}, then(yanked), "", ""},
	{"twice", given(published, yanked), YankArtifact{wheel1.Filename, true, "bad"}, nil, "", ""},
	{"for another reason", given(published, yanked), YankArtifact{wheel1.Filename, true, ""}, then(events.ArtifactYanked{}), "", ""},
	{"back", given(published, yanked), YankArtifact{Filename: wheel1.Filename}, then(events.ArtifactUnyanked{}), "", ""},
	{"back what is not yanked", given(published), YankArtifact{Filename: wheel1.Filename}, nil, "", ""},
	{"back what was built anew", given(published, yanked, republished), YankArtifact{Filename: wheel1.Filename}, nil, "", ""},
	{"other bytes of the same attempt", given(published), publish(hash2, flask, 1), nil, fault.Conflict, "another wheel of this name is published"},
	{"other bytes of an earlier attempt", given(published, republished), publish(hash1, flask, 1), nil, fault.Conflict, "attempt 2; use that one"},
	{"other bytes of another target", given(published), publish(hash2, flask312, 9), nil, fault.Conflict, "built as flask/3.0.0/cp311/linux_x86_64, attempt 1"},
}

func TestArtifact(t *testing.T) { check(t, artifactScenarios) }

// Who may not publish learns the hash of the wheel that is there, and can build on with that.
func TestArtifactConflictNamesTheHash(t *testing.T) {
	_, _, err := scenario{given: given(published), when: publish(hash2, flask312, 1)}.run(t)
	if f := err.(*fault.Error); len(f.Fields) != 1 || f.Fields[0] != (fault.Field{Pointer: "/sha256", Detail: hash1}) {
		t.Errorf("fields: %v", f.Fields)
	}
}
