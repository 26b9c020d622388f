package artifacts

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/blockmover/blockmover/e2e/images"
	"github.com/blockmover/blockmover/e2e/images/debian"
)

// SaveImages makes the archives of the named images whose binaries changed, and returns the
// archives of all.
func (c *Cache) SaveImages(names ...string) ([]string, error) {
	var archives []string
	for _, name := range names {
		image, err := c.image(name)
		if err != nil {
			return nil, err
		}
		stamp, err := imageStamp(image)
		if err != nil {
			return nil, err
		}
		archive := c.Image(name)
		stampName := "image-" + filepath.Base(archive)
		if _, err := os.Stat(archive); err != nil || !c.stampIs(stampName, stamp) {
			if err := image.Save(archive, runtime.GOARCH); err != nil {
				return nil, err
			}
			if err := c.writeStamp(stampName, stamp); err != nil {
				return nil, err
			}
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

// ClusterImages are the names of the images that need Build.
func ClusterImages() []string {
	return []string{images.PauseName, images.BusyboxName, images.VeleroName, images.AWSPluginName}
}

// ProductImages are the names of the images that need BuildProducts.
func ProductImages() []string { return []string{images.PluginName, images.MoverName, images.ToolsName} }

// AllImages are the names of all images.
func AllImages() []string { return append(ClusterImages(), ProductImages()...) }

func (c *Cache) image(name string) (images.Image, error) {
	switch name {
	case images.PauseName:
		return images.Pause(c.Bin()), nil
	case images.BusyboxName:
		busybox := filepath.Join(c.Runtime(), "bin", "busybox")
		out, err := exec.Command(busybox, "--list").Output()
		if err != nil {
			return images.Image{}, fmt.Errorf("list applets of %s: %w", busybox, err)
		}
		e2fsck := filepath.Join(c.Runtime(), "sbin", "e2fsck.static")
		return images.Busybox(busybox, e2fsck, strings.Fields(string(out))), nil
	case images.VeleroName:
		return images.Velero(c.Bin()), nil
	case images.AWSPluginName:
		return images.AWSPlugin(c.Bin()), nil
	case images.PluginName:
		return images.BlockmoverPlugin(c.Bin()), nil
	case images.MoverName:
		return images.BlockmoverMover(c.Bin()), nil
	case images.ToolsName:
		files, err := debian.FileSystemTools.Files(c.tools())
		return images.BlockmoverTools(c.Bin(), files), err
	}
	return images.Image{}, fmt.Errorf("unknown image %q; known: %s", name, strings.Join(AllImages(), " "))
}

// imageStamp identifies the sources of an image by size and time.
func imageStamp(image images.Image) (string, error) {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%q %q %q %q %q\n", image.Name, image.Entrypoint, image.Cmd, image.Env, image.User)
	for _, f := range image.Files {
		_, _ = fmt.Fprintf(h, "%q %q %q %v %o %d %d %x", f.Path, f.Source, f.Link, f.Dir, f.Mode, f.UID, f.GID, f.Content)
		if f.Source != "" {
			info, err := os.Stat(f.Source)
			if err != nil {
				return "", fmt.Errorf("image %s: %w (cluster build makes it)", image.Name, err)
			}
			_, _ = fmt.Fprint(h, info.Size(), info.ModTime().UnixNano())
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
