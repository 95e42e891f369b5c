package readapi

import "time"

// PingEvery sets how often streams show that they live; before any is open.
func PingEvery(d time.Duration) (undo func()) {
	before := pingEvery
	pingEvery = d
	return func() { pingEvery = before }
}

// SearchTime sets how long a search looks; before any runs.
func SearchTime(d time.Duration) (undo func()) {
	before := searchTime
	searchTime = d
	return func() { searchTime = before }
}

// What tests go beyond.
const (
	AuditEvents = auditEvents
	TellEvery   = tellEvery
)
