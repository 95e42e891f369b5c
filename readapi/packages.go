package readapi

import (
	"cmp"
	"context"
	"slices"

	version "github.com/aquasecurity/go-pep440-version"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

var packageList = list[projections.PackageRow]{
	name: "packages", from: "summary.packages", by: []string{"updated_position"}, desc: true,
	keyOf: func(r projections.PackageRow) []int64 { return []int64{r.UpdatedPosition} },
}

// ListPackages answers GET /packages. A project whose builds change while a client pages moves before the first page.
func (s *Server) ListPackages(ctx context.Context, request api.ListPackagesRequestObject) (api.ListPackagesResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"summary"}}, func() (any, error) {
		var w where
		w.project("name", p.Package)
		rows, next, err := packageList.read(ctx, s.db, w, p.Limit, p.Cursor)
		return page{api.PackageList{Items: convert(rows, packageOf), Next: next}, next}, err
	})
}

// mostOfPackage is how many versions and targets of a project are shown.
const mostOfPackage = 500

type (
	packageVersion struct {
		Version string                   `db:"version" sql:"text"`
		Counts  projections.StatusCounts `db:"counts" sql:"json"`
	}
	packageVariant struct {
		PythonTag   string                   `db:"python_tag" sql:"text"`
		PlatformTag string                   `db:"platform_tag" sql:"text"`
		Counts      projections.StatusCounts `db:"counts" sql:"json"`
	}
)

// askBuilds counts the builds of a project by status, for each of the newest values of columns.
func askBuilds[R any](p *pipeline, into *[]R, columns, project string) {
	ask(p, into, `from (select `+columns+`, json_object_agg(status, n) as counts from (
			select `+columns+`, status, count(*) as n, max(updated_position) as newest from builds.builds where name = $1 group by `+columns+`, status
		) of_status group by `+columns+` order by max(newest) desc limit $2) newest`, project, mostOfPackage)
}

// GetPackage answers GET /packages/{name}.
func (s *Server) GetPackage(ctx context.Context, request api.GetPackageRequestObject) (api.GetPackageResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"summary", "builds"}}, func() (any, error) {
		var all pipeline
		var rows []projections.PackageRow
		var versions []packageVersion
		var variants []packageVariant
		name := events.NormalizeName(request.Name)
		ask(&all, &rows, "from summary.packages where name = $1", name)
		askBuilds(&all, &versions, "version", name)
		askBuilds(&all, &variants, "python_tag, platform_tag", name)
		if err := all.run(ctx, s.o.Pool); err != nil {
			return nil, err
		}
		row, err := first(rows, "No build of this project was ever asked for. /packages lists those that there are.")
		if err != nil {
			return nil, err
		}
		newestFirst(versions)
		slices.SortFunc(variants, func(a, b packageVariant) int {
			return cmp.Or(cmp.Compare(a.PythonTag, b.PythonTag), cmp.Compare(a.PlatformTag, b.PlatformTag))
		})
		of := packageOf(row)
		return api.PackageDetail{
			Name: of.Name, Counts: of.Counts, Versions: of.Versions, Variants: of.Variants, Succeeded: of.Succeeded, Failed: of.Failed,
			SuccessRate: of.SuccessRate, Durations: of.Durations, UpdatedAt: of.UpdatedAt, LatestFailure: of.LatestFailure,
			VersionList: convert(versions, func(v packageVersion) api.PackageVersion {
				return api.PackageVersion{Version: v.Version, Counts: counts(v.Counts.Of)}
			}),
			VariantList: convert(variants, func(v packageVariant) api.PackageVariant {
				return api.PackageVariant{PythonTag: v.PythonTag, PlatformTag: v.PlatformTag, Counts: counts(v.Counts.Of)}
			}),
		}, nil
	})
}

// newestFirst sorts as PEP 440 says; what is no version comes last.
func newestFirst(rows []packageVersion) {
	parsed := map[string]*version.Version{}
	for _, r := range rows {
		if v, err := version.Parse(r.Version); err == nil {
			parsed[r.Version] = &v
		}
	}
	slices.SortFunc(rows, func(a, b packageVersion) int {
		x, y := parsed[a.Version], parsed[b.Version]
		switch {
		case x != nil && y != nil:
			return cmp.Or(y.Compare(*x), cmp.Compare(a.Version, b.Version))
		case x != nil:
			return -1
		case y != nil:
			return 1
		}
		return cmp.Compare(a.Version, b.Version)
	})
}

func packageOf(r projections.PackageRow) api.Package {
	p := api.Package{
		Name: r.Name, Counts: counts(r.Counts.Of), Versions: r.Versions, Variants: r.Variants, Succeeded: int64(r.Succeeded), Failed: int64(r.Failed),
		Durations: api.PackageDurations{Count: r.Durations.Count, MedianMS: r.Durations.MedianMS, P90Ms: r.Durations.P90MS, MaxMS: r.Durations.MaxMS},
		UpdatedAt: r.UpdatedAt,
	}
	if n := r.Succeeded + r.Failed; n > 0 {
		rate := float64(r.Succeeded) / float64(n)
		p.SuccessRate = &rate
	}
	if f := r.Failure; f != nil {
		p.LatestFailure = &api.PackageFailure{
			Position: f.Position, Time: f.Time, Version: f.Version, PythonTag: f.PythonTag, PlatformTag: f.PlatformTag, Attempt: f.Attempt,
			Class: api.Class(f.Class), Reason: f.Reason,
		}
	}
	return p
}
