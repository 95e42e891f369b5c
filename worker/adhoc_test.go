package worker
import ("testing";"time";"os";"github.com/wheelrefinery/refinery/api")
func TestAdhocFailing(t *testing.T) {
	p := newPlane(t)
	w, _ := p.start(func(c *Config) { c.UpstreamIndex = "" })
	for _, x := range [][2]string{{"psycopg2","2.9.10"},{"mysqlclient","2.2.7"},{"pycairo","1.27.0"},{"pyyaml","5.4.1"},{"lxml","5.3.0"}} {
		p.add(w, x[0], x[1])
	}
	for _, x := range []string{"psycopg2","mysqlclient","pycairo","pyyaml","lxml"} {
		r := p.ended(x, 5*time.Minute)
		t.Logf("%s %s %s: %s (%d ms, %d lines)\n", x, r.Status, r.Class, r.Reason, r.DurationMS, r.LogLines)
	}
	r := p.planned(api.Job{Requirements: "psycopg2==2.9.10\nwrapt==1.17.0\ncffi==1.17.1", BuildMode: "all"})
	t.Log(keys(r), r.Warnings, r.Error, r.DurationMS)
	b := time.Now()
	w2, err := New(w.Config); if err != nil { t.Fatal(err) }
	if err := w2.Prepare(t.Context()); err != nil { t.Fatal(err) }
	t.Log("second prepare", time.Since(b))
}
func TestAdhocPython(t *testing.T) {
	for _, py := range []string{os.Getenv("PYA"), os.Getenv("PYB")} {
	p := newPlane(t)
	w, stop := p.start(func(c *Config) { c.UpstreamIndex = ""; c.Python = py; c.BuildUser = "root" })
	r := p.planned(api.Job{Requirements: "itsdangerous==2.2.0\nmarkupsafe==3.0.2", BuildMode: "bootstrap"})
	t.Log(py, keys(r), r.Warnings, r.Error, r.DurationMS, edges(r))
	p.add(w, "markupsafe", "3.0.2")
	x := p.ended("markupsafe", time.Minute)
	t.Log(x.Status, x.Reason, x.Wheel)
	stop()
	}
}
