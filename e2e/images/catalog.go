package images

import "path/filepath"

// The images of the test cluster. The tags are fixed: a cluster gets its images from the host
// and never pulls.
const (
	PauseName     = "pause:e2e"
	BusyboxName   = "busybox:e2e"
	VeleroName    = "velero:v1.18.3"
	AWSPluginName = "velero-plugin-for-aws:v1.14.3"
	PluginName    = "blockmover-plugin:dev"
	MoverName     = "blockmover-mover:dev"
	ToolsName     = "blockmover-mover-tools:dev"
)

// nonroot is the user of images that need no privileges, as in distroless.
const nonroot = "65532:65532"

// Pause is the sandbox image.
func Pause(bin string) Image {
	return Image{
		Name:       PauseName,
		Files:      []File{{Path: "/pause", Source: filepath.Join(bin, "pause")}},
		Entrypoint: []string{"/pause"},
		User:       nonroot,
	}
}

// Busybox is the image of test applications: a static busybox with all its
// applets as links, and e2fsck to check a file system before its first mount.
func Busybox(busybox, e2fsck string, applets []string) Image {
	files := []File{
		{Path: "/bin/busybox", Source: busybox},
		{Path: "/sbin/e2fsck", Source: e2fsck},
		{Path: "/tmp", Dir: true, Mode: 0o1777},
		{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"), Mode: 0o644},
	}
	for _, a := range applets {
		if a != "busybox" && a != "" {
			files = append(files, File{Path: "/bin/" + a, Link: "/bin/busybox"})
		}
	}
	return Image{Name: BusyboxName, Files: files, Cmd: []string{"/bin/sh"}}
}

// Velero is the server and node-agent image.
func Velero(bin string) Image {
	files := scratchHome("velero")
	for _, name := range []string{"velero", "velero-helper", "velero-restore-helper"} {
		files = append(files, File{Path: "/" + name, Source: filepath.Join(bin, name)})
	}
	return Image{
		Name:  VeleroName,
		Files: files,
		// Without HOME, kopia's work path is /udmrepo. The user cannot make it, and the
		// BackupRepository never becomes ready.
		Env:  []string{"HOME=/home/velero"},
		User: nonroot,
	}
}

// AWSPlugin is Velero's object store plugin.
func AWSPlugin(bin string) Image { return plugin(AWSPluginName, bin, "velero-plugin-for-aws") }

// BlockmoverPlugin is our plugin image, as Dockerfile.plugin makes it.
func BlockmoverPlugin(bin string) Image { return plugin(PluginName, bin, "velero-plugin-blockmover") }

// BlockmoverMover is our mover image, as Dockerfile.mover makes it.
func BlockmoverMover(bin string) Image {
	return Image{
		Name:       MoverName,
		Files:      append(scratchHome("blockmover"), File{Path: "/blockmover", Source: filepath.Join(bin, "blockmover")}),
		Entrypoint: []string{"/blockmover"},
		Env:        []string{"HOME=/home/blockmover"},
		User:       nonroot,
	}
}

// BlockmoverTools is our image with programs that check file systems, as Dockerfile.tools makes it. Files
// are the programs with their libraries.
func BlockmoverTools(bin string, files []File) Image {
	return Image{
		Name:       ToolsName,
		Files:      append(files, File{Path: "/fscheck", Source: filepath.Join(bin, "fscheck")}, File{Path: "/tmp", Dir: true, Mode: 0o1777}),
		Entrypoint: []string{"/fscheck"},
		User:       nonroot,
	}
}

// plugin returns a plugin image as Velero expects it: as an init container, it copies its
// binary to /target.
func plugin(image, bin, binary string) Image {
	return Image{
		Name: image,
		Files: []File{
			{Path: "/bin/cp-plugin", Source: filepath.Join(bin, "cp-plugin")},
			{Path: "/plugins/" + binary, Source: filepath.Join(bin, binary)},
		},
		Entrypoint: []string{"/bin/cp-plugin", "/plugins/" + binary, "/target/" + binary},
		User:       nonroot,
	}
}

func scratchHome(user string) []File {
	return []File{
		{Path: "/tmp", Dir: true, Mode: 0o1777},
		{Path: "/home/" + user, Dir: true, Mode: 0o755, UID: 65532, GID: 65532},
	}
}
