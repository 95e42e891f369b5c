package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/wheelrefinery/refinery/events"
)

// ArtifactRow is a wheel in the index.
type ArtifactRow struct {
	Filename       string    `db:"filename" sql:"text primary key"`
	Position       int64     `db:"position" sql:"bigint"`
	Project        string    `db:"project" sql:"text"` // normalised (PEP 503)
	Version        string    `db:"version" sql:"text"`
	VersionKey     string    `db:"version_key" sql:"text"`
	SHA256         string    `db:"sha256" sql:"text"`
	Size           int64     `db:"size" sql:"bigint"`
	Tags           []string  `db:"tags" sql:"jsonb"`
	RequiresPython string    `db:"requires_python" sql:"text"`
	MetadataSHA256 string    `db:"metadata_sha256" sql:"text"` // PEP 658
	Yanked         bool      `db:"yanked" sql:"boolean"`       // PEP 592
	YankReason     string    `db:"yank_reason" sql:"text"`
	UploadedAt     time.Time `db:"uploaded_at" sql:"timestamptz"`
	BuildName      string    `db:"build_name" sql:"text"`
	BuildVersion   string    `db:"build_version" sql:"text"`
	PythonTag      string    `db:"python_tag" sql:"text"` // the build's
	PlatformTag    string    `db:"platform_tag" sql:"text"`
	Attempt        int       `db:"attempt" sql:"bigint"`
}

// Key is the filename.
func (a ArtifactRow) Key() string { return a.Filename }

// Build is the build that made it.
func (a ArtifactRow) Build() events.BuildID {
	return events.BuildID{Name: a.BuildName, Version: a.BuildVersion, PythonTag: a.PythonTag, PlatformTag: a.PlatformTag}
}

// ProjectRow is a project that the index has a wheel of.
type ProjectRow struct {
	Project  string `db:"project" sql:"text primary key"`
	Position int64  `db:"position" sql:"bigint"` // of its newest wheel
}

// Key is the project's name.
func (p ProjectRow) Key() string { return p.Project }

type artifactTables struct {
	files    *table[string, ArtifactRow]
	projects *table[string, ProjectRow]
}

var artifacts = define("artifacts", 1, func(m *models) *artifactTables {
	return &artifactTables{
		newTable[string, ArtifactRow](m, "files", "(position)", "(project, position)", "(version_key, position)", "(position) where yanked"),
		newTable[string, ProjectRow](m, "projects"),
	}
}, on((*artifactTables).published), on((*artifactTables).yanked), on((*artifactTables).unyanked))

func (t *artifactTables) published(e events.ArtifactPublished, m events.Recorded) {
	t.files.Put(ArtifactRow{
		Filename: e.Filename, Position: m.Position, Project: e.Project, Version: e.Version, VersionKey: VersionKey(e.Version), SHA256: e.SHA256, Size: e.Size,
		Tags: e.Tags, RequiresPython: e.RequiresPython, MetadataSHA256: e.MetadataSHA256, UploadedAt: m.Time,
		BuildName: e.Build.Name, BuildVersion: e.Build.Version, PythonTag: e.Build.PythonTag, PlatformTag: e.Build.PlatformTag,
		Attempt: e.Attempt,
	})
	t.projects.Put(ProjectRow{e.Project, m.Position})
}

func (t *artifactTables) yanked(e events.ArtifactYanked, m events.Recorded) {
	t.yank(m, true, e.Reason)
}

func (t *artifactTables) unyanked(_ events.ArtifactUnyanked, m events.Recorded) { t.yank(m, false, "") }

func (t *artifactTables) yank(m events.Recorded, yanked bool, reason string) {
	filename, ok := events.ParseArtifact(m.Stream)
	if !ok {
		panic(fmt.Sprintf("%q is not the stream of a wheel", m.Stream))
	}
	if a, ok := t.files.Get(filename); ok {
		a.Yanked, a.YankReason = yanked, reason
		t.files.Put(a)
	}
}

// Yanked reads the builds whose newest wheel is yanked.
func Yanked(ctx context.Context, q Querier) (map[events.BuildID]bool, error) {
	rows, err := Query[ArtifactRow](ctx, q, `from artifacts.files f where yanked and not exists (select from artifacts.files g
		where g.project = f.project and (g.build_name, g.build_version, g.python_tag, g.platform_tag) = (f.build_name, f.build_version, f.python_tag, f.platform_tag)
			and g.position > f.position)`)
	found := make(map[events.BuildID]bool, len(rows))
	for _, a := range rows {
		found[a.Build()] = true
	}
	return found, err
}
