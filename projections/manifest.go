package projections

import (
	"cmp"
	"slices"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// ManifestRow is what a run ended with.
type ManifestRow struct {
	Run      uuid.UUID              `db:"run_id" sql:"uuid primary key"`
	State    string                 `db:"state" sql:"text"`      // of the run: built, failed, cancelled; empty: not ended
	Finished int64                  `db:"finished" sql:"bigint"` // position; 0: not ended
	Entries  []events.ManifestEntry `db:"entries" sql:"json"`    // by name, version and tags
}

// Key is the run's id.
func (r ManifestRow) Key() uuid.UUID { return r.Run }

type manifestTables struct {
	manifests *table[uuid.UUID, ManifestRow]
}

var manifest = define("manifest", 1, func(m *models) *manifestTables {
	return &manifestTables{newTable[uuid.UUID, ManifestRow](m, "manifests", "(finished)")}
}, on((*manifestTables).finished), on((*manifestTables).recorded))

func (t *manifestTables) finished(e events.RunFinished, m events.Recorded) {
	r, _ := t.manifests.Get(runOf(m))
	r.Run, r.State, r.Finished = runOf(m), e.State, m.Position
	r.Entries = merged(r.Entries, e.Manifest)
	t.manifests.Put(r)
}

func (t *manifestTables) recorded(e events.ManifestRecorded, m events.Recorded) {
	r, _ := t.manifests.Get(runOf(m))
	r.Run = runOf(m)
	r.Entries = merged(r.Entries, e.Entries)
	t.manifests.Put(r)
}

// merged holds each build once; newer entries win.
func merged(entries, newer []events.ManifestEntry) []events.ManifestEntry {
	all := slices.Concat(newer, entries)
	slices.SortStableFunc(all, compareEntries)
	return slices.CompactFunc(all, func(a, b events.ManifestEntry) bool { return compareEntries(a, b) == 0 })
}

func compareEntries(a, b events.ManifestEntry) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version),
		cmp.Compare(a.PythonTag, b.PythonTag), cmp.Compare(a.PlatformTag, b.PlatformTag))
}
