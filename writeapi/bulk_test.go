package writeapi_test

import (
	"testing"

	"github.com/wheelrefinery/refinery/api"
)

// More than one request may concern: the answer says how many and what to do, and nothing is sent. A dry run counts them all the same.
func TestBulkOfTooMany(t *testing.T) {
	p := start(t, gate{})
	request := api.BulkRequest{Action: "cancel", Filter: api.BulkFilter{Package: "a"}}
	p.send(422, "POST", "/builds/bulk", request).says("10001 builds")
	if head := p.log.Head(); head != 0 {
		t.Errorf("%d events", head)
	}
	request.DryRun = true
	if got := into[api.BulkPreview](p.send(200, "POST", "/builds/bulk", request)); got.Concerned != 10_001 || len(got.Sample) != 1 {
		t.Errorf("%+v", got)
	}
}
