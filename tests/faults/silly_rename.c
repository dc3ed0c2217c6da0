/* Delete as NFS does: a file that some process has open is renamed to .nfs… in its folder. For LD_PRELOAD. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_open(const struct stat *file)
{
    int found = 0;
    DIR *processes = opendir("/proc");
    for (struct dirent *process; processes && !found && (process = readdir(processes));) {
        char folder[300];
        snprintf(folder, sizeof folder, "/proc/%s/fd", process->d_name);
        DIR *descriptors = opendir(folder);
        struct stat other;
        for (struct dirent *one; descriptors && !found && (one = readdir(descriptors));)
            found = !fstatat(dirfd(descriptors), one->d_name, &other, 0) && other.st_dev == file->st_dev &&
                    other.st_ino == file->st_ino;
        if (descriptors)
            closedir(descriptors);
    }
    if (processes)
        closedir(processes);
    return found;
}

/* Rename an open file out of the way: 1 if that is done, 0 if the file is not open, -1 with errno. */
static int hide(int at, const char *path)
{
    struct stat file;
    if (fstatat(at, path, &file, AT_SYMLINK_NOFOLLOW) || !S_ISREG(file.st_mode) || !is_open(&file))
        return 0;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (!strncmp(name, ".nfs", 4)) {
        errno = EBUSY;
        return -1;
    }
    char hidden[4096];
    snprintf(hidden, sizeof hidden, "%.*s.nfs%016lx", (int)(name - path), path, (unsigned long)file.st_ino);
    return syscall(SYS_renameat2, at, path, at, hidden, 0) ? -1 : 1;
}

int unlinkat(int at, const char *path, int flags)
{
    int hidden = flags & AT_REMOVEDIR ? 0 : hide(at, path);
    return hidden ? (hidden < 0 ? -1 : 0) : (int)syscall(SYS_unlinkat, at, path, flags);
}

int unlink(const char *path)
{
    return unlinkat(AT_FDCWD, path, 0);
}

int renameat(int from_at, const char *from, int to_at, const char *to)
{
    return hide(to_at, to) < 0 ? -1 : (int)syscall(SYS_renameat2, from_at, from, to_at, to, 0);
}

int rename(const char *from, const char *to)
{
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}
