package readapi

import "time"

// PingEvery sets how often streams show that they live; before any is open.
func PingEvery(d time.Duration) (undo func()) {
	before := pingEvery
	pingEvery = d
	return func() { pingEvery = before }
}

// What tests go beyond.
const (
	AuditEvents = auditEvents
	TellEvery   = tellEvery
)
