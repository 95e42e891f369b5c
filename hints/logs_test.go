package hints

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/wheelrefinery/refinery/events"
)

// The ends of real builds of sdists (Debian 12, CPython 3.11, in a box without the system packages), and what is found in them. What follows
// the name says what else was missing, or for pkg, that pkg-config, CMake, Ninja and Git were there.
var failed = map[string]string{
	"aiohttp":            "longintrepr longintrepr-aiohttp",
	"av@pkg":             "ffmpeg",
	"bcrypt":             "rust",
	"bcrypt@nogcc":       "rust",
	"bsddb3":             "berkeley-db",
	"cffi":               "libffi",
	"contourpy@nogpp":    "cxx-compiler",
	"contourpy@nopython": "python-headers",
	"cryptography":       "network-tls rust-temporary",
	"dbus-python":        "dbus pkg-config",
	"dbus-python@pkg":    "dbus",
	"dlib":               "cmake",
	"fiona":              "gdal",
	"GDAL":               "gdal",
	"gmpy2":              "gmp",
	"gssapi":             "kerberos",
	"h5py":               "pkg-config",
	"h5py@pkg":           "hdf5",
	"kiwisolver@nogpp":   "cxx-compiler",
	"libvirt-python":     "pkg-config",
	"libvirt-python@pkg": "libvirt",
	"llvmlite":           "setuptools-dry_run",
	"llvmlite@st80":      "llvm",
	"lxml":               "libxml2-and-libxslt",
	"M2Crypto":           "swig",
	"mysqlclient":        "mysql pkg-config",
	"mysqlclient@pkg":    "mysql",
	"netCDF4":            "hdf5",
	"netifaces@nogcc":    "c-compiler",
	"netifaces@nopython": "python-headers",
	"pillow":             "jpeg",
	"plyvel":             "leveldb",
	"psycopg2":           "pg_config",
	"psycopg2@noheader":  "libpq",
	"pyalsaaudio":        "alsa",
	"pyaudio":            "portaudio",
	"pybluez":            "setuptools-use_2to3",
	"pycairo":            "cairo pkg-config",
	"pycairo@pkg":        "cairo",
	"pycurl":             "curl-config",
	"pygame":             "freetype-config pkg-config sdl2",
	"pygame@pkg":         "freetype freetype-config sdl2",
	"PyGObject":          "cairo pkg-config",
	"PyGObject@pkg":      "cairo",
	"pygraphviz":         "graphviz",
	"pyicu@pkg":          "icu",
	"pylibmc":            "libmemcached",
	"pynacl@nomake":      "make",
	"pyodbc":             "unixodbc",
	"pypcap":             "pcap",
	"pyproj":             "proj",
	"pysqlite3":          "sqlite",
	"python-ldap":        "ldap",
	"python-snappy":      "snappy",
	"pyyaml":             "cython-3-build_ext",
	"regex@lowmem":       "out-of-memory",
	"rrdtool@pkg":        "rrdtool",
	"sasl":               "longintrepr",
	"scipy":              "fortran-compiler",
	"shapely":            "geos geos-config",
	"suds-jurko":         "network-dns setuptools-pkg_resources",
	"systemd-python":     "pkg-config",
	"systemd-python@pkg": "libsystemd",
	"ujson@nogpp":        "cxx-compiler",
	"ujson@nospace":      "no-space",
	"wrapt@nonet":        "network-dns no-versions",
	"xmlsec":             "pkg-config",
	"xmlsec@pkg":         "xmlsec",
}

func TestCatalogueOnRealFailures(t *testing.T) {
	m := mustCompile(t, Catalogue())
	seen := 0
	for file, log := range readLogs(t, "testdata/failed") {
		var ids []string
		name, _, _ := strings.Cut(file, "@")
		for _, found := range mustMatch(t, m, Build{events.NormalizeName(name), "cp311", "linux_x86_64", ""}, log) {
			ids = append(ids, found.Hint)
		}
		slices.Sort(ids)
		if got := strings.Join(ids, " "); got != failed[file] {
			t.Errorf("%q: %q,", file, got)
		}
		seen++
	}
	if seen != len(failed) {
		t.Errorf("%d logs, %d expected", seen, len(failed))
	}
}

// A build that ended well has nothing to be told.
func TestCatalogueOnRealSuccesses(t *testing.T) {
	severity := map[string]string{}
	for _, h := range Catalogue() {
		severity[h.ID] = h.Severity
	}
	m := mustCompile(t, Catalogue())
	for file, log := range readLogs(t, "testdata/built") {
		for _, found := range mustMatch(t, m, Build{}, log) {
			if severity[found.Hint] == "error" {
				t.Errorf("%s: %s is found in line %d: %s", file, found.Hint, found.Line, found.Text)
			}
		}
	}
}

func readLogs(t *testing.T, folder string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(folder + "/*.log")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	logs := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		logs[strings.TrimSuffix(filepath.Base(file), ".log")] = string(text)
	}
	return logs
}
